"""The same user code under raylit and under Lightning, to compare what comes out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

import raylit
from tests.lazy import lightning
from tests.quiet import UNLOGGED


def both(scenario: Callable[[Any, Path], Any], tmp_path: Path) -> tuple[Any, Any]:
    """Run `scenario(pl, root)` with raylit and then with Lightning as `pl`; return both results.

    Each runs in a folder of its own.
    """
    found = []
    frameworks: list[ModuleType] = [raylit, lightning.pytorch]
    for pl in frameworks:
        root = tmp_path / pl.__name__.split(".")[0]
        root.mkdir(exist_ok=True)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(relative(scenario(pl, root), root))
    return found[0], found[1]


def relative(value: Any, root: Path) -> Any:
    """Return `value` as plain data without what differs by nature.

    Folders, and tensors that are equal but not the same.
    """
    if isinstance(value, str):
        return value.replace(str(root), "ROOT")
    if isinstance(value, Path):
        return relative(str(value), root)
    if isinstance(value, Tensor):
        return relative(value.tolist(), root)
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, dict):
        return {relative(key, root): relative(item, root) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [relative(item, root) for item in value]
    return value


def scripted(
    pl: Any,
    val: Sequence[float] | None = None,
    train: Sequence[float] | None = None,
    **logged: float,
) -> Any:
    """Return a module that logs the next of these values as `val_loss` and as `train_loss`.

    It logs the former at each validation, the latter at each training batch.
    """

    class Scripted(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)
            self.val, self.train_values = iter(val or ()), iter(train or ())

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if train is not None:
                self.log("train_loss", torch.tensor(next(self.train_values)))
            loss: Tensor = self.layer(batch).square().mean()
            return loss

        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            if val is not None and batch_idx == 0 and not self.trainer.sanity_checking:
                self.log("val_loss", torch.tensor(next(self.val)))
            for name, value in logged.items():
                self.log(name, value)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Scripted()


def batches(number: int = 4) -> DataLoader[Tensor]:
    """Return a loader of so many batches."""
    data: Any = torch.arange(8.0 * number).reshape(2 * number, 4) / (8 * number)
    return DataLoader(data, batch_size=2)


def fit_with(
    framework: Any,
    root: Path,
    callback: Any,
    trainer: dict[str, Any],
    val: Any,
    train: Any = None,
    ckpt_path: Any = None,
) -> Any:
    arguments = {
        "max_epochs": 4,
        "callbacks": callback,
        "default_root_dir": root,
        **UNLOGGED,
        **trainer,
    }
    done = framework.Trainer(**arguments)
    done.fit(scripted(framework, val, train), batches(), batches(2), ckpt_path=ckpt_path)
    return done
