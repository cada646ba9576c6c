"""What user code reads off `trainer` about those that listen to it."""

from __future__ import annotations

from typing import Any

import torch

from raylit.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    ModelCheckpoint,
    ProgressBar,
    RecoveryCheckpoint,
)
from raylit.loggers import Logger
from raylit.trainer.ranks import Ranks


class Listeners(Ranks):
    """The loggers and the callbacks, and what is told them."""

    callbacks: list[Callback]
    loggers: list[Logger]
    default_root_dir: str
    storage_path: str | None

    @property
    def logger(self) -> Logger | None:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [logger] if logger else []

    @property
    def log_dir(self) -> str | None:
        """Folder of the first logger's files, else `default_root_dir`."""
        return (
            self.default_root_dir
            if self.logger is None
            else self.logger.log_dir or self.logger.save_dir
        )

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """All callbacks that save checkpoints."""
        return [c for c in self.callbacks if isinstance(c, Checkpoint)]

    @property
    def storage_url(self) -> str | None:
        """`storage_path`, if it is a URL.

        Folders of checkpoints that have no other place lie below it.
        """
        return self.storage_path if self.storage_path and "://" in self.storage_path else None

    @property
    def savers(self) -> list[Callback]:
        """All callbacks whose files a fit may go on from."""
        return [c for c in self.callbacks if isinstance(c, (Checkpoint, RecoveryCheckpoint))]

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first ModelCheckpoint, or whatever else saves checkpoints, or None."""
        return next(
            (c for c in self.checkpoint_callbacks if isinstance(c, ModelCheckpoint)),
            next(iter(self.checkpoint_callbacks), None),
        )

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """All EarlyStopping callbacks."""
        return [c for c in self.callbacks if isinstance(c, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first EarlyStopping callback, or None."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressBar | None:
        """The progress bar, or None."""
        return next((c for c in self.callbacks if isinstance(c, ProgressBar)), None)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Send values to the loggers, at `step` or at the step that runs."""
        assert self._run is not None, "no job was run yet"
        self._run.metrics.logged.update(
            (name, torch.as_tensor(value)) for name, value in metrics.items()
        )
        self._run.log_metrics(metrics, step)

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0, above the progress bar."""
        if self.is_global_zero:
            bar = self.progress_bar_callback
            (bar.print if bar is not None else print)(*args, **kwargs)
