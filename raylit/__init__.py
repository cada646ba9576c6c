"""raylit.

Train PyTorch models written as LightningModules in this process or on Ray, sweep them with Ray
Tune, see them in MLflow.

    import raylit as pl

    class LitModel(pl.LightningModule): ...
    pl.Trainer(max_epochs=10).fit(LitModel(), train_dataloaders=loader)

Importing raylit loads neither ray, mlflow, pyarrow nor jsonargparse: each is loaded by what needs
it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit import callbacks, core, loggers, profilers, strategies, utilities
from raylit.callbacks import Callback
from raylit.check.check import CheckReport
from raylit.core.datamodule import DataModule, LightningDataModule
from raylit.core.importable import allow
from raylit.core.job import Result
from raylit.core.module import LightningModule
from raylit.data import RayDataLoader
from raylit.loggers import CSVLogger, MLFlowLogger
from raylit.parallel import DDPStrategy
from raylit.runtime.lazy import attribute_loader
from raylit.runtime.rng import seed_everything
from raylit.trainer.driver import keep_workers
from raylit.trainer.trainer import Trainer
from raylit.validation.config import ValidationConfig
from raylit.version import __version__

if TYPE_CHECKING:
    from raylit.tune import SweepResult, Tuner

_LAZY = {"Tuner": "raylit.tune", "SweepResult": "raylit.tune"}

__all__ = [
    "CSVLogger",
    "Callback",
    "CheckReport",
    "DDPStrategy",
    "DataModule",
    "LightningDataModule",
    "LightningModule",
    "MLFlowLogger",
    "RayDataLoader",
    "Result",
    "SweepResult",
    "Trainer",
    "Tuner",
    "ValidationConfig",
    "__version__",
    "allow",
    "callbacks",
    "core",
    "keep_workers",
    "loggers",
    "profilers",
    "seed_everything",
    "strategies",
    "utilities",
]

__getattr__ = attribute_loader(__name__, _LAZY)
