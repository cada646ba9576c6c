"""`Trainer.export`: files that compute in another process what the module computes here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import raylit as pl
from raylit.errors import ConfigError, MissingPackageError
from raylit.export import ExportReport
from tests.quiet import trainer

NUM_SAMPLES = 10


@dataclass
class Pair:
    image: Tensor
    tokens: Tensor
    label: Tensor


class Pairs(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {
            "image": torch.randn(1, 6, 6, generator=generator),
            "tokens": torch.randint(0, 12, (5,), generator=generator),
            "label": torch.tensor(index % 3),
        }


class TwoInputs(pl.LightningModule):
    """Two encoders; in train mode it drops, so that an export in the wrong mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        self.embedding = nn.Embedding(12, 8)
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(4 * 16 + 8, 3))
        self.fused = self.head[1].weight  # tied: under two names in the state

    def forward(self, image: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        both = torch.cat([self.conv(image), self.embedding(tokens).mean(1)], 1)
        logits = self.head(both)
        return {"logits": logits, "probability": logits.softmax(-1)}

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self(batch["image"], batch["tokens"])


def loader(batch_size: int = 4) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Pairs(), batch_size=batch_size)


def export(model: pl.LightningModule, path: Path, **arguments: Any) -> ExportReport:
    arguments = {"dataloaders": loader(), **arguments}
    return trainer(path.parent).export(model, path, verbose=False, **arguments)


READ_AGAIN = """
import json, sys
import numpy, onnxruntime, torch
folder = sys.argv[1]
given = torch.load(folder + "/given.pt")
session = onnxruntime.InferenceSession(folder + "/model.onnx")
got = session.run(None, {name: given[name].numpy() for name in ("image", "tokens")})
by_onnx = abs(got[0] - given["logits"].numpy()).max()
program = torch.export.load(folder + "/model.pt2").module()
by_torch = (program(given["image"], given["tokens"])[0] - given["logits"]).abs().max()
print(json.dumps([float(by_onnx), float(by_torch), "raylit" in sys.modules]))
"""


def test_both_programs_run_in_a_fresh_process_without_raylit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoInputs()
    for name in ("model.onnx", "model.pt2"):
        report = export(model, tmp_path / name)
        assert report.max_difference <= 1e-5
        # two batches of 4, one of 2, and one sample alone
        assert report.batch_sizes == (4, 4, 2, 1)
        assert list(report.inputs) == ["image", "tokens"]
    batch = next(iter(loader(7)))  # a size that it was not made with
    with torch.no_grad():
        logits = model.eval()(batch["image"], batch["tokens"])["logits"]
    torch.save({**batch, "logits": logits}, tmp_path / "given.pt")
    done = subprocess.run(
        [sys.executable, "-c", READ_AGAIN, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    by_onnx, by_torch, has_raylit = json.loads(done.stdout.splitlines()[-1])
    assert by_onnx <= 1e-5
    assert by_torch <= 1e-5
    assert not has_raylit


def test_weights_alone_can_be_loaded_by_name(tmp_path: Path) -> None:
    from safetensors.torch import load_model

    model = TwoInputs()
    report = export(model, tmp_path / "model.safetensors")
    assert report.format == "safetensors"
    assert report.max_difference == 0
    other = TwoInputs()
    load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(other.head[1].weight, model.head[1].weight)
    assert torch.equal(other.conv[1].running_var, model.conv[1].running_var)


def test_a_model_of_mlflow_predicts_the_same_numbers(tmp_path: Path) -> None:
    import mlflow.pyfunc

    model = TwoInputs()
    report = export(model, tmp_path / "served", format="mlflow")
    assert report.max_difference <= 1e-5
    batch = next(iter(loader(3)))
    inputs = {name: batch[name].numpy() for name in ("image", "tokens")}
    got = mlflow.pyfunc.load_model(str(tmp_path / "served")).predict(inputs)
    with torch.no_grad():
        wanted = model.eval()(batch["image"], batch["tokens"])
    for name, value in wanted.items():
        assert abs(torch.as_tensor(got[name]) - value).max() <= 1e-5
    with pytest.raises(ConfigError, match="there is one"):
        export(model, tmp_path / "served", format="mlflow")


def test_the_weights_of_a_checkpoint_are_exported(tmp_path: Path) -> None:
    trained = TwoInputs()
    one = trainer(tmp_path)
    one.validate(trained, loader(), verbose=False)
    one.save_checkpoint(tmp_path / "trained.ckpt")
    export(TwoInputs(), tmp_path / "model.pt2", ckpt_path=tmp_path / "trained.ckpt")
    batch = next(iter(loader(5)))
    got = torch.export.load(tmp_path / "model.pt2").module()(batch["image"], batch["tokens"])
    with torch.no_grad():
        wanted = trained.eval()(batch["image"], batch["tokens"])["logits"]
    torch.testing.assert_close(got[0].detach(), wanted, rtol=0, atol=1e-5)


def as_pairs(samples: list[dict[str, Tensor]]) -> Pair:
    return Pair(**{name: torch.stack([one[name] for one in samples]) for name in samples[0]})


def test_a_batch_that_is_a_dataclass_goes_in_by_its_fields(tmp_path: Path) -> None:
    class Whole(TwoInputs):
        def forward(self, batch: Pair) -> Tensor:  # type: ignore[override]
            return super().forward(batch.image, batch.tokens)["logits"]

    pairs = DataLoader(Pairs(), batch_size=4, collate_fn=as_pairs)
    report = export(TwoInputs(), tmp_path / "fields.pt2", dataloaders=pairs)
    assert list(report.inputs) == ["image", "tokens"]
    report = export(Whole(), tmp_path / "whole.pt2", dataloaders=pairs)
    assert list(report.inputs) == ["image", "tokens", "label"]
    assert report.max_difference <= 1e-5


class Branches(TwoInputs):
    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        if image.sum() > 0:  # this line
            return self.conv(image)
        return -self.conv(image)


class Sizes(TwoInputs):
    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return image * (2 if image.shape[0] == 4 else 1)  # this line


class Bessel(TwoInputs):
    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return torch.special.bessel_j1(image)  # this line


class Noisy(TwoInputs):
    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return image + torch.rand_like(image)


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (
            Branches,
            "model.pt2",
            r"Branches.forward cannot be exported at .*: `if image.sum\(\) > 0",
        ),
        (Sizes, "model.pt2", r"Sizes.forward cannot be exported"),
        (
            Bessel,
            "model.onnx",
            r"no counterpart of the operator \S*bessel_j1\S* at .*: `return torch",
        ),
        (Noisy, "model.pt2", "gives other numbers each time for the same batch"),
    ],
)
def test_what_cannot_be_exported_is_named_and_leaves_nothing(
    tmp_path: Path, model: type[TwoInputs], name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(model(), tmp_path / name)
    assert not list(tmp_path.glob("model*"))
    assert not list(tmp_path.glob(".export*"))


class Weighted(pl.LightningModule):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        return (x * w).cumsum(-1)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize("size", [1, 4])
def test_an_input_of_a_fixed_shape_stays_whole(tmp_path: Path, name: str, size: int) -> None:
    batches: Any = [(torch.randn(number, 3), torch.randn(3)) for number in (size, 3)]
    batches = DataLoader(batches, batch_size=None)
    report = export(Weighted(), tmp_path / name, dataloaders=batches)
    assert report.inputs == {"x": "float32 (batch, 3)", "w": "float32 (3)"}


def test_batches_of_other_lengths_are_told_apart(tmp_path: Path) -> None:
    batches: Any = [(torch.randn(4, length), torch.randn(1)) for length in (5, 7)]
    batches = DataLoader(batches, batch_size=None)
    for name in ("model.onnx", "model.pt2"):
        with pytest.raises(ConfigError, match=r"x has the shape \(4, 7\) in batch 2.*\(4, 5\)"):
            export(Weighted(), tmp_path / name, dataloaders=batches)
    assert export(Weighted(), tmp_path / "model.pt2", dataloaders=batches, num_batches=1)
    assert export(Weighted(), tmp_path / "model.safetensors", dataloaders=batches).num_samples == 9


class NoForward(pl.LightningModule):
    pass


class OtherNames(pl.LightningModule):
    def forward(self, picture: Tensor, words: Tensor) -> Tensor:
        return picture


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (TwoInputs, {"format": "onx"}, "Did you mean 'onnx'"),
        (TwoInputs, {"num_batches": 0}, "num_batches=0"),
        (TwoInputs, {"tolerance": 0.0}, "tolerance=0.0"),
        (TwoInputs, {"dataloaders": None}, "Trainer.export"),
        (NoForward, {}, r"has no forward\(\)"),
        (OtherNames, {}, "forward takes picture, words, but a batch, a dict with image"),
    ],
)
def test_bad_input_is_told_before_anything_is_written(
    tmp_path: Path, model: type[pl.LightningModule], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        export(model(), tmp_path / "model.pt2", **arguments)
    assert not list(tmp_path.iterdir())


def test_an_ending_that_tells_no_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its ending tells no format"):
        export(TwoInputs(), tmp_path / "model.xyz")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "onnxruntime" else find_spec(name, *rest),
    )
    with pytest.raises(MissingPackageError, match=r"pip install 'raylit\[export\]'"):
        export(TwoInputs(), tmp_path / "model.onnx")
