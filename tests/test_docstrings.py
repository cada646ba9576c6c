"""The examples in docstrings run.

Each is run as by a user who has a model, its data and a Trainer at hand, in a folder of its own.
An output is compared where the docstring shows one.
"""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

import raylit

PACKAGE = Path(raylit.__file__).parent
# These want a cluster, files in a bucket or a finished sweep; each names the tests that run them.
ELSEWHERE = {
    "RayDataLoader": "tests/data/test_ray_dataset.py",
    "load": "tests/tune/test_sweep.py",
    "SweepResult": "tests/tune/test_sweep.py",
    "Tuner": "tests/tune/test_tuner.py, tests/tune/test_sweep.py",
    "to_one_file": "tests/checkpoint/test_sharded.py",
    "LightningCLI": "tests/cli/test_lightning_cli.py",
    "SaveConfigCallback": "tests/cli/test_lightning_cli.py",
    "to_onnx": "tests/core/test_export.py",
    # of packages that want an account
    "WandbLogger": "tests/loggers/test_hosted.py",
    "CometLogger": "tests/loggers/test_hosted.py",
    "NeptuneLogger": "tests/loggers/test_hosted.py",
}


def examples() -> list[Any]:
    """Read them without importing a module: one parameter for each docstring with an example."""
    parser = doctest.DocTestParser()
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = "raylit." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        text = path.read_text()
        if ">>>" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.Module)):
                continue
            docstring = ast.get_docstring(node) or ""
            name = getattr(node, "name", "module")
            if ">>>" in docstring and name not in ELSEWHERE:
                test = parser.get_doctest(docstring, {}, name, str(path), 0)
                found.append(pytest.param(module, test, id=f"{module[7:]}:{name}"))
    return found


class ComparedWhereShown(doctest.OutputChecker):
    """An example that shows no output only has to run."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def at_hand(module: str) -> dict[str, Any]:
    """Return the names that the examples use, as a user would have imported or made them."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader

    from raylit import callbacks, cli, loggers, profilers, testing, utilities

    names: dict[str, Any] = {}
    for place in (utilities, cli, profilers, testing, loggers, callbacks, raylit):
        names |= {name: getattr(place, name) for name in place.__all__}
    names |= {"torch": torch, "nn": nn, "DataLoader": DataLoader, "pytest": pytest}
    names |= {"raylit": raylit, "tune": importlib.import_module("raylit.tune")}

    class Net(testing.BoringModel):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.lr = lr

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.layer(batch).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    class Data(raylit.LightningDataModule):
        def __init__(self, batch_size: int = 4) -> None:
            super().__init__()
            self.batch_size = batch_size

        def loader(self) -> Any:
            return DataLoader(testing.RandomDataset(32, 16), batch_size=self.batch_size)

        train_dataloader = val_dataloader = test_dataloader = loader

    quiet = {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = raylit.Trainer(**quiet, profiler="simple")  # type: ignore[arg-type]
    names |= {"model": Net(), "data": Data(), "loader": Data().loader(), "trainer": trainer}
    names |= {"LitModel": Net, "load": dict}
    # A user has the public names: a module's own `Trainer` is the Protocol of callbacks.
    return vars(importlib.import_module(module)) | names


@pytest.mark.parametrize(("module", "test"), examples())
def test_the_example_runs(
    module: str, test: doctest.DocTest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "2")  # where the example says nothing
    monkeypatch.setenv("PL_TRAINER_LOG_EVERY_N_STEPS", "2")
    test.globs = at_hand(module)
    said: list[str] = []
    runner = doctest.DocTestRunner(checker=ComparedWhereShown(), verbose=False)
    runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)
