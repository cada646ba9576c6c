"""OnExceptionCheckpoint: saves the run when an exception ends it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from raylit.callbacks.checkpoints.alone import write_alone
from raylit.callbacks.checkpoints.checkpoint import Checkpoint
from raylit.checkpoint import folder
from raylit.errors import ConfigError
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class OnExceptionCheckpoint(Checkpoint):
    """Saves the run when an exception ends a fit, so that the next fit goes on from there.

    The file is deleted once a fit has ended well.

    A later `fit` of a Trainer with this callback looks for the file by itself, without `ckpt_path`.

    Args:
        dirpath: folder of the file.
        filename: its name without `.ckpt`; a file of that name is replaced.

    Raises:
        ConfigError: `filename` is empty, or the strategy shards the model.

    Example:
        >>> trainer = Trainer(callbacks=[OnExceptionCheckpoint("checkpoints")])
    """

    FILE_EXTENSION = ".ckpt"

    def __init__(self, dirpath: str | os.PathLike[str], filename: str = "on_exception") -> None:
        if not filename:
            raise ConfigError(
                "OnExceptionCheckpoint(filename='') names no file. Leave it out for 'on_exception'."
            )
        self.dirpath = dirpath
        self.filename = filename

    @property
    def saves_on_exception(self) -> bool:
        return True

    @property
    def ckpt_path(self) -> str:
        """Path of the file."""
        return os.path.join(self.dirpath, self.filename + self.FILE_EXTENSION)

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.refuse_if_sharded(
            "OnExceptionCheckpoint saves what rank 0 has, since an exception may end it alone"
        )

    def on_exception(
        self, trainer: RunningTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        run = trainer.run
        if (
            run is None
            or not trainer.optimizers
            or trainer.state.fn != "fit"
            or trainer.fast_dev_run
        ):
            return  # there is nothing yet that a fit could go on from
        if trainer.is_global_zero:  # alone: the other ranks may be gone, or know of no exception
            write_alone(trainer, self.ckpt_path)
            info(
                f"A {type(exception).__name__} was raised ({exception}); the run was saved to"
                f" {self.ckpt_path}."
            )

    def teardown(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        # An exception ends a job without teardown, so the file stays; a test leaves it alone too
        if trainer.is_global_zero and stage == "fit":
            folder.remove(self.ckpt_path)
