"""raylit.

Train PyTorch models written as LightningModules in this process or on Ray, sweep them with Ray
Tune, see them in MLflow.

    import raylit as pl

    class LitModel(pl.LightningModule): ...
    pl.Trainer(max_epochs=10).fit(LitModel(), train_dataloaders=loader)

Importing raylit loads nothing; a name that is asked for loads torch, but neither ray, mlflow,
pyarrow nor jsonargparse: each is loaded by what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader
from raylit.version import __version__

if TYPE_CHECKING:
    from raylit import callbacks, core, loggers, profilers, strategies, utilities
    from raylit.callbacks import Callback
    from raylit.check.check import CheckReport
    from raylit.core.datamodule import DataModule, LightningDataModule
    from raylit.core.importable import allow
    from raylit.core.job import Result
    from raylit.core.module import LightningModule
    from raylit.data import RayDataLoader
    from raylit.data.arrow import ArrowDataset, ArrowLoader, ParquetDataModule
    from raylit.loggers import CSVLogger, MLFlowLogger
    from raylit.parallel import DDPStrategy
    from raylit.runtime.rng import seed_everything
    from raylit.trainer.driver import keep_workers
    from raylit.trainer.trainer import Trainer
    from raylit.tune import SweepResult, Tuner
    from raylit.validation.config import ValidationConfig

# Where each name is, loaded when it is first asked for: `raylit --help` needs none of them, and
# importing torch alone takes more than a second.
_PLACES = {
    "ArrowDataset": "raylit.data.arrow",
    "ArrowLoader": "raylit.data.arrow",
    "CSVLogger": "raylit.loggers",
    "Callback": "raylit.callbacks",
    "CheckReport": "raylit.check.check",
    "DDPStrategy": "raylit.parallel",
    "DataModule": "raylit.core.datamodule",
    "LightningDataModule": "raylit.core.datamodule",
    "LightningModule": "raylit.core.module",
    "MLFlowLogger": "raylit.loggers",
    "ParquetDataModule": "raylit.data.arrow",
    "RayDataLoader": "raylit.data",
    "Result": "raylit.core.job",
    "SweepResult": "raylit.tune",
    "Trainer": "raylit.trainer.trainer",
    "Tuner": "raylit.tune",
    "ValidationConfig": "raylit.validation.config",
    "allow": "raylit.core.importable",
    "keep_workers": "raylit.trainer.driver",
    "seed_everything": "raylit.runtime.rng",
}

__all__ = [
    "ArrowDataset",
    "ArrowLoader",
    "CSVLogger",
    "Callback",
    "CheckReport",
    "DDPStrategy",
    "DataModule",
    "LightningDataModule",
    "LightningModule",
    "MLFlowLogger",
    "ParquetDataModule",
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

if not TYPE_CHECKING:  # which finds a name that is not there
    __getattr__ = attribute_loader(__name__, _PLACES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
