"""raylit: train PyTorch models written as LightningModules in this process or on Ray, sweep them with Ray Tune, see them in MLflow.

    import raylit as pl

    class LitModel(pl.LightningModule): ...
    pl.Trainer(max_epochs=10).fit(LitModel(), train_dataloaders=loader)

Importing raylit loads neither ray, mlflow, pyarrow nor jsonargparse: each is loaded by what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raylit import callbacks, core, loggers, profilers, strategies, utilities
from raylit.async_validation import ValidationConfig
from raylit.callbacks import Callback
from raylit.check import CheckReport
from raylit.data import RayDataLoader
from raylit.datamodule import DataModule, LightningDataModule
from raylit.driver import keep_workers
from raylit.job import Result
from raylit.loggers import CSVLogger, MLFlowLogger
from raylit.module import LightningModule
from raylit.parallel import DDPStrategy
from raylit.rng import seed_everything
from raylit.trainer import Trainer
from raylit.version import __version__

if TYPE_CHECKING:
    from raylit.tune import SweepResult, Tuner

_LAZY = {"Tuner": "raylit.tune", "SweepResult": "raylit.tune"}

__all__ = [
    "CSVLogger", "Callback", "CheckReport", "DDPStrategy", "DataModule", "LightningDataModule", "LightningModule", "MLFlowLogger", "RayDataLoader", "Result",
    "SweepResult", "Trainer", "Tuner", "ValidationConfig", "__version__", "callbacks", "core", "keep_workers", "loggers", "profilers", "seed_everything", "strategies", "utilities",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'raylit' has no attribute {name!r}")
