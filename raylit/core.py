"""Lightning's paths to what stands elsewhere here: `from raylit.core.module import LightningModule`, `raylit.trainer.states`, and others.

`import raylit` puts them in place, as modules without files of their own. New code does not need them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from raylit import callbacks, hooks, states, strategies, summary, trainer, utilities
from raylit.batch import size_of
from raylit.datamodule import LightningDataModule
from raylit.hparams import HasHyperparameters
from raylit.loggers import csv
from raylit.module import LightningModule
from raylit.optim import LightningOptimizer
from raylit.utilities import grads, model_helpers, rank_zero

__all__ = ["LightningDataModule", "LightningModule"]

_TIES = {name: getattr(model_helpers, name) for name in ("find_shared_parameters", "set_shared_parameters")}

PATHS: dict[str, dict[str, Any]] = {
    "callbacks.lambda_function": {"LambdaCallback": callbacks.LambdaCallback},
    "callbacks.lr_monitor": {"LearningRateMonitor": callbacks.LearningRateMonitor},
    "callbacks.progress": {name: getattr(callbacks, name) for name in ("ProgressBar", "RichProgressBar", "TQDMProgressBar")},
    "callbacks.progress.progress_bar": {"ProgressBar": callbacks.ProgressBar},
    "callbacks.progress.rich_progress": {"RichProgressBar": callbacks.RichProgressBar},
    "callbacks.progress.tqdm_progress": {"TQDMProgressBar": callbacks.TQDMProgressBar},
    "callbacks.rich_model_summary": {"RichModelSummary": callbacks.RichModelSummary},
    "core.datamodule": {"LightningDataModule": LightningDataModule},
    "core.hooks": {"ModelHooks": hooks.ModuleHooks},
    "core.mixins": {"HyperparametersMixin": HasHyperparameters},
    "core.module": {"LightningModule": LightningModule},
    "core.optimizer": {"LightningOptimizer": LightningOptimizer},
    "loggers.csv_logs": {"CSVLogger": csv.CSVLogger},
    "strategies.ddp": {"DDPStrategy": strategies.DDPStrategy},
    "trainer.states": {name: getattr(states, name) for name in ("RunningStage", "TrainerFn", "TrainerState", "TrainerStatus")},
    "trainer.trainer": {"Trainer": trainer.Trainer},
    "utilities.data": {"extract_batch_size": size_of},
    "utilities.enums": {"GradClipAlgorithmType": grads.GradClipAlgorithmType, "LightningEnum": states.LightningEnum},
    "utilities.model_summary": {"ModelSummary": summary.summarize, "summarize": summary.summarize},
    "utilities.parameter_tying": _TIES,
    "utilities.parsing": {"AttributeDict": utilities.AttributeDict, "is_picklable": model_helpers.is_picklable},
    "utilities.warnings": {"PossibleUserWarning": rank_zero.PossibleUserWarning},
}


def put_in_place() -> None:
    """Make the modules of `PATHS` that no file makes, so that they can be imported and reached through dots."""
    for path, names in PATHS.items():
        name = f"raylit.{path}"
        if name not in sys.modules:
            module = sys.modules[name] = ModuleType(name, "Lightning's path to what stands elsewhere.")
            vars(module).update(names)
        parent, _, last = name.rpartition(".")
        setattr(sys.modules[parent], last, sys.modules[name])


put_in_place()
