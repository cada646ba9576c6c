"""Models in MLflow's own format, written and read back; one form for each kind of module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raylit.loggers.mlflow.model import pyfunc, save_final
from raylit.testing import BoringModel
from tests.lazy import mlflow


class Two(BoringModel):
    """Takes two tensors, and behaves otherwise while it is trained."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:  # type: ignore[override]
        """Return what training must not disturb."""
        return {"sum": torch.nn.functional.dropout(x + y, 0.5, self.training), "x": x}


class Branches(BoringModel):
    """Cannot be exported: what it does depends on the numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return another sign for other numbers."""
        return self.layer(x) if x.sum().item() > 0 else -self.layer(x)  # type: ignore[no-any-return]


def test_one_tensor_becomes_a_program_for_any_number_of_samples(tmp_path: Path) -> None:
    model = BoringModel().train()
    folder = str(tmp_path / "model")
    assert save_final(model, (torch.rand(1, 32),), folder) == "pt2"
    assert model.training, "it is left as it was"
    signature = mlflow.models.get_model_info(folder).signature
    assert signature.inputs.inputs[0].shape == (-1, 32)
    assert signature.outputs.inputs[0].shape == (-1, 2)
    x = torch.rand(5, 32)
    got = mlflow.pyfunc.load_model(folder).predict(x.numpy())
    assert torch.allclose(torch.as_tensor(got), model(x), atol=1e-6)
    assert not [path for path in Path(folder).rglob("*.py") if "modules" in path.name]


@pytest.mark.parametrize("kind", [Two, Branches])
def test_what_is_no_such_program_is_pickled_with_its_class(
    tmp_path: Path, kind: type[BoringModel], said: list[str]
) -> None:
    model = kind().train()
    inputs = tuple(torch.rand(3, 32) for _ in range(2 if kind is Two else 1))
    assert save_final(model, inputs, str(tmp_path / "model")) == "pickle"
    assert model.training
    assert any("cannot be exported" in text for text in said) is (kind is Branches)
    assert (tmp_path / "model" / "code" / Path(__file__).name).is_file()
    loaded = mlflow.pytorch.load_model(str(tmp_path / "model"))
    assert not loaded.training
    found, wanted = loaded(*inputs), model.eval()(*inputs)
    if kind is Two:
        found, wanted = found["sum"], wanted["sum"]
    assert torch.equal(found, wanted)
    assert (mlflow.models.get_model_info(str(tmp_path / "model")).signature is None) is (
        kind is Two
    )


def test_a_module_that_fails_is_left_as_it_was(tmp_path: Path) -> None:
    model = BoringModel().train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        save_final(model, (torch.rand(3, 7),), str(tmp_path / "model"))
    assert model.training


@pytest.mark.long
def test_an_onnx_file_is_served_with_the_names_of_its_tensors(tmp_path: Path) -> None:
    """Exported by torch, which takes long for its first model."""
    from raylit.loggers.mlflow.model import save_onnx

    model = BoringModel().eval()
    x = torch.rand(3, 32)
    path = str(tmp_path / "model.onnx")
    batch = {"x": {0: torch.export.Dim("batch")}}
    torch.onnx.export(
        model, (x,), path, input_names=["x"], output_names=["y"], dynamic_shapes=batch, dynamo=True
    )
    save_onnx(path, str(tmp_path / "model"), {"x": x}, {"y": model(x).detach()})
    signature = mlflow.models.get_model_info(str(tmp_path / "model")).signature
    assert [(one.name, one.shape) for one in signature.inputs.inputs] == [("x", (-1, 32))]
    more = torch.rand(7, 32)
    found = pyfunc(str(tmp_path / "model"))({"x": more})
    assert {*found} == {"y"}
    assert torch.allclose(found["y"], model(more), atol=1e-5)
