"""Progress: the counters of a run that are saved in its checkpoints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Self

from raylit.core.aliases import StateDict


@dataclass(slots=True)
class Progress:
    """Where a fit is. A step is one optimizer step, a batch one micro-batch of a rank.

    Attributes:
        epoch: epochs completed; the number of the epoch that runs.
        epochs_begun: epochs begun; raised before `on_train_epoch_start` fires.
        epochs_started: as `epochs_begun`, but raised after it.
        epochs_processed: as `epoch`, but already raised when `on_train_epoch_end` fires.
        batch: batches begun in this epoch; after its end and until the next one's
            `on_train_epoch_start`, in the last.
        batches_done: batches of this epoch whose `on_train_batch_end` has run.
        total_batches: batches begun over all epochs.
        steps: optimizer steps (with manual optimization: summed over the optimizers).
        log_steps: batches that stepped and were logged: the x-axis of the loggers, one behind
            `steps` inside a batch.
        scheduler_steps: steps of all learning-rate schedulers.
        is_last_batch: whether the batch begun is the epoch's last.
    """

    epoch: int = 0
    epochs_begun: int = 0
    epochs_started: int = 0
    epochs_processed: int = 0
    batch: int = 0
    batches_done: int = 0
    total_batches: int = 0
    steps: int = 0
    log_steps: int = 0
    scheduler_steps: int = 0
    is_last_batch: bool = False

    @property
    def in_epoch(self) -> bool:
        """Whether an epoch was begun whose batches are not all done with."""
        return self.epochs_started > self.epochs_processed == self.epoch and self.batch > 0

    def start_epoch(self) -> None:
        """Count the batches of an epoch anew."""
        self.epochs_started = self.epochs_begun
        self.batch = self.batches_done = 0
        self.is_last_batch = False

    def before_batch(self) -> Self:
        """Return the counters as they stood before the batch that was begun last."""
        return replace(
            self, batch=self.batch - 1, total_batches=self.total_batches - 1, is_last_batch=False
        )

    def state_dict(self) -> StateDict:
        """Return the counters as plain data."""
        return asdict(self)

    def load_state_dict(self, state: StateDict) -> None:
        """Take the counters from `state_dict`; keys of other versions are ignored."""
        for field in fields(self):
            if field.name in state:
                setattr(self, field.name, state[field.name])
