"""Snapshot: the run as it was when a validation was due, for those who judge its values late."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from raylit.checkpoint import folder
from raylit.checkpoint.format import load, save
from raylit.core.progress import Progress
from raylit.errors import NotSavedError
from raylit.runtime.aliases import CheckpointDict
from raylit.runtime.storage import is_url

if TYPE_CHECKING:
    from torch import Tensor

    from raylit.core.trainer import RunningTrainer

# what a checkpoint holds for a continued training alone
TRAINING_STATE = ("callbacks", "optimizer_states", "lr_schedulers", "MixedPrecision")


class Snapshot:
    """Stands for the Trainer in `on_validation_end` of callbacks that watch metrics.

    Counters, stage and `callback_metrics` are those of the validation, and `save_checkpoint` saves
    the checkpoint that was validated. All else is the Trainer's as it is now, also when it is set:
    a stop that EarlyStopping asks for stops the fit that runs.

    Args:
        trainer: the Trainer.
        progress: the counters when the validation was due.
        metrics: what callbacks would have seen had they waited.
        path: the checkpoint that was validated.
        weights_only: whether it holds weights only.
    """

    training = False
    validating = True
    evaluating = True
    testing = False
    predicting = False
    sanity_checking = False
    has_validated = True

    def __init__(
        self,
        trainer: RunningTrainer,
        progress: Progress,
        metrics: dict[str, Tensor],
        path: str,
        weights_only: bool,
    ) -> None:
        # Past `__setattr__`, which hands all on to the Trainer
        vars(self).update(
            trainer=trainer,
            progress=progress,
            callback_metrics=metrics,
            current_epoch=progress.epoch,
            global_step=progress.steps,
            batch_idx=progress.batch - 1,
            total_batch_idx=progress.total_batches - 1,
            is_last_batch=progress.is_last_batch,
            _path=path,
            _weights_only=weights_only,
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["trainer"], name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(vars(self)["trainer"], name, value)

    def save_checkpoint(
        self,
        filepath: str | os.PathLike[str],
        weights_only: bool | None = None,
        storage_options: dict[str, object] | None = None,
    ) -> None:
        """Save the checkpoint that was validated; see `Trainer.save_checkpoint`.

        Raises:
            NotSavedError: it could not be written; on all ranks.
        """
        path = os.fspath(filepath)
        source = self._path
        strips = bool(weights_only) and not self._weights_only

        def copy() -> None:
            # Else a second name for the same file will do, whatever its size
            if strips or is_url(source) or is_url(path):
                checkpoint = load(source)
                if strips:
                    checkpoint = _without_training_state(checkpoint)
                save(checkpoint, path, storage_options=storage_options)
                return
            try:
                folder.give_second_name(source, path)
            except OSError as error:
                raise NotSavedError(
                    f"The checkpoint {path} could not be written: {error}."
                ) from error

        self.world.from_zero(copy, NotSavedError)


def _without_training_state(checkpoint: CheckpointDict) -> dict[str, object]:
    kept = {key: value for key, value in checkpoint.items() if key not in TRAINING_STATE}
    own = {key: value for key, value in checkpoint["raylit"].items() if key != "ranks"}
    return {**kept, "raylit": own}
