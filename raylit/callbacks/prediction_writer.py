"""BasePredictionWriter.

Brings predictions to whoever writes them away, batch by batch or all at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from raylit.core.callback import Callback, Trainer
from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch, Prediction, StepOutput

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class WriteInterval(StrEnum):
    """When predictions are written."""

    BATCH = "batch"
    EPOCH = "epoch"
    BATCH_AND_EPOCH = "batch_and_epoch"

    @property
    def on_batch(self) -> bool:
        """Whether they are written after each batch."""
        return self is not WriteInterval.EPOCH

    @property
    def on_epoch(self) -> bool:
        """Whether they are written at the end, all of them."""
        return self is not WriteInterval.BATCH


class BasePredictionWriter(Callback):
    """Base of callbacks that write predictions.

    Override `write_on_batch_end`, `write_on_epoch_end` or both.

    On several ranks each writes its own predictions, those for a consecutive piece of the data;
    give the files names with `trainer.global_rank`. Call
    `trainer.predict(..., return_predictions=False)` if the predictions are not wanted in memory;
    with `epoch` they are kept until written.

    Args:
        write_interval: `batch`, `epoch` or `batch_and_epoch`.

    Raises:
        ConfigError: `write_interval` is not known.
        NotImplementedError: while predicting, if the method for the interval is not overridden.

    Example:
        >>> class Writer(BasePredictionWriter):
        ...     def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        ...         torch.save(
        ...             [predictions, batch_indices], f"predictions_{trainer.global_rank}.pt"
        ...         )
        >>> trainer = Trainer(callbacks=[Writer(write_interval="epoch")])
    """

    def __init__(
        self, write_interval: Literal["batch", "epoch", "batch_and_epoch"] = "batch"
    ) -> None:
        if write_interval not in list(WriteInterval):
            raise ConfigError(
                f"{type(self).__name__}(write_interval={write_interval!r}) is not known. Use"
                f" {', '.join(map(repr, map(str, WriteInterval)))}."
            )
        self.interval = WriteInterval(write_interval)

    @property
    def notes_samples(self) -> bool:
        return True

    @property
    def keeps_predictions(self) -> bool:
        return self.interval.on_epoch

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Prediction,
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            prediction: what `predict_step` returned, still on the device.
            batch_indices: which samples of the data set the batch is made of; empty if that cannot
                be told.
            batch: the batch.
            batch_idx: its number.
            dataloader_idx: number of its loader.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no write_on_batch_end, which"
            f" write_interval={str(self.interval)!r} needs."
        )

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Prediction],
        batch_indices: Sequence[Any],
    ) -> None:
        """Write all batches.

        Args:
            trainer: the Trainer.
            pl_module: the module.
            predictions: what `predict_step` returned for each batch, on the CPU; for several
                loaders a list of such lists.
            batch_indices: a list for each loader, with the samples of each batch.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no write_on_epoch_end, which"
            f" write_interval={str(self.interval)!r} needs."
        )

    def on_predict_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.interval.on_batch:
            indices = trainer.batch_indices(batch_idx, dataloader_idx)
            self.write_on_batch_end(
                trainer, pl_module, outputs, indices, batch, batch_idx, dataloader_idx
            )

    def on_predict_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self.interval.on_epoch:
            self.write_on_epoch_end(
                trainer, pl_module, trainer.predictions, trainer.epoch_batch_indices
            )
