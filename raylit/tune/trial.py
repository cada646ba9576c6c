"""What runs in the process of one trial.

A fit like any other, whose metrics are reported to Ray Tune.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ray import tune

from raylit.callbacks import Checkpoint, ModelCheckpoint
from raylit.errors import ConfigError, Stopped
from raylit.loggers import CSVLogger, MLFlowLogger
from raylit.metrics.metrics import to_numbers
from raylit.runtime.rng import seed_everything
from raylit.trainer.trainer import Trainer


@dataclass
class TrialPlan:
    """What every trial of a sweep is made from.

    Attributes:
        trainer: its arguments are the trial's, but for those the space names.
        model: called with the trial's `model.*` values.
        data: called with the trial's `data.*` values, or None.
        fit_arguments: handed to `Trainer.fit`.
        parent: the MLflow run of the sweep, or None.
        folder: where the trials keep their files.
        metric: what is optimized.
        seed: of the random numbers in each trial, or None.
    """

    trainer: Trainer
    model: Callable[..., Any]
    data: Callable[..., Any] | None
    fit_arguments: dict[str, Any]
    parent: MLFlowLogger | None
    folder: str
    metric: str
    seed: str | None

    def __call__(self, config: dict[str, Any]) -> None:
        """Run one trial with the sampled values of `config`."""
        name = tune.get_context().get_trial_name()
        scopes: dict[str, dict[str, Any]] = {"model": {}, "data": {}, "trainer": {}}
        for key, value in config.items():
            scope, _, argument = key.partition(".")
            scopes[scope][argument] = value
        if self.seed is not None:
            seed_everything(int(self.seed), verbose=False)
        trainer = self.make_trainer(name, scopes["trainer"], config)
        model = self.model(**scopes["model"])
        data = self.data(**scopes["data"]) if self.data is not None else None
        trainer.fit(model, datamodule=data, **self.fit_arguments)

    def make_trainer(self, name: str, arguments: dict[str, Any], config: dict[str, Any]) -> Trainer:
        """Return the Trainer of the trial called `name`.

        Its files in a folder of its own, its run below the sweep's.
        """
        folder = os.path.join(self.folder, name)
        trainer = self.trainer.replaced(
            **{
                "default_root_dir": folder,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                **arguments,
            }
        )
        trainer.loggers = [
            self._own_logger(logger, name, config)
            for logger in trainer.loggers
            if not isinstance(logger, MLFlowLogger)
        ]
        if self.parent is not None:
            values = {f"raylit.swept.{key}": str(value) for key, value in config.items()}
            child = self.parent.child(name, {"raylit.trial": name, **values})
            trainer.loggers.insert(0, child)
        for callback in trainer.callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.dirpath = (
                    os.path.join(os.fspath(callback.dirpath), name)
                    if callback.dirpath
                    else os.path.join(folder, "checkpoints")
                )
        trainer.callbacks.append(TuneReport(self.metric))
        return trainer

    @staticmethod
    def _own_logger(logger: Any, name: str, config: dict[str, Any]) -> Any:
        """Return the logger of one trial.

        Trials at the same time must not take the same version.
        """
        if isinstance(logger, CSVLogger):
            return CSVLogger(logger.save_dir or ".", name=logger.name, version=name)
        return copy.deepcopy(logger)


class TuneReport(Checkpoint):
    """Reports what was logged to Ray Tune after every validation, or epoch if there is none.

    The last of all callbacks, after checkpoints.

    Args:
        metric: what the sweep optimizes; must have been logged.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Report, unless validation does."""
        if not self._with_validation(trainer):
            self._report(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Report, where validation does not run exactly once per epoch."""
        if (
            self._with_validation(trainer)
            and trainer.state.fn == "fit"
            and not trainer.sanity_checking
        ):
            self._report(trainer)

    @staticmethod
    def _with_validation(trainer: Any) -> bool:
        once = (
            trainer.val_check_interval == 1.0
            and trainer.val_check_time_s is None
            and trainer.check_val_every_n_epoch == 1
        )
        return trainer.enable_validation and not once

    def _report(self, trainer: Any) -> None:
        metrics: dict[str, Any] = dict(to_numbers(trainer.callback_metrics))
        if self.metric not in metrics:
            logged = ", ".join(metrics) or "nothing"
            raise ConfigError(
                f"The sweep optimizes {self.metric!r}, which was not logged. Logged: {logged}. Log"
                " it, or change the sweep's metric."
            )
        saver = next(
            (callback for callback in trainer.callbacks if isinstance(callback, ModelCheckpoint)),
            None,
        )
        metrics["epoch"] = trainer.current_epoch
        metrics["global_step"] = trainer.global_step
        metrics["best_model_path"] = saver.best_model_path if saver is not None else ""
        metrics["run_id"] = next((logger.run_id for logger in trainer.loggers if logger.run_id), "")
        for logger in trainer.loggers:
            logger.finalize("success")  # the scheduler may end this process right after the report
        try:
            tune.report(metrics)
        except SystemExit as stop:  # how Ray Tune ends a trial that its scheduler stopped
            raise Stopped from stop
