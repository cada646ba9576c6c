"""Training with fewer workers than the most that there may be, with as few changes as possible.

The measure is the largest number, `max` of `num_workers=(min, max)`: a step takes the batches of so
many workers, whoever processes them. With fewer workers, each adds up the gradients of more
batches, where the batches of a step can be dealt out evenly; else each keeps its number of batches,
and the step is smaller. The Trainer's counts of batches of a worker are changed to mean the same
data, so that an epoch keeps its length; and schedules of the learning rate follow the data too: an
epoch takes them as far as with all the workers, whose steps may be fewer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from raylit.callbacks import GradientAccumulationScheduler
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.progress import Progress
    from raylit.core.trainer import JobTrainer
    from raylit.data import CombinedLoader
    from raylit.launch.on_ray.relay import RemoteScreen
    from raylit.runtime.aliases import StateDict

LIMITS = (
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "val_check_interval",
)


class ElasticPlan:
    """Fits a job to the workers that there are.

    Args:
        size: how many there are.
        most: how many there may be.
        screen: tells the driver, from rank 0, how the job goes on; None: nobody is told.

    Attributes:
        policy: what became of the batch of a step, in words.
    """

    def __init__(self, size: int, most: int, screen: RemoteScreen | None = None) -> None:
        self.size = size
        self.most = most
        self.screen = screen
        self.factor = Fraction(most, size)
        self.keeps_step = False
        self.policy = ""

    def adapt(self, trainer: JobTrainer, module: LightningModule, fn: str) -> None:
        """Change the Trainer's counts of batches of a worker, so that they mean the same data.

        To be called once, before the job runs.
        """
        if trainer.fast_dev_run:
            return
        for name in LIMITS:
            value = getattr(trainer, name)
            if isinstance(value, int):  # else it is a fraction
                setattr(trainer, name, math.ceil(value * self.factor))
        if fn != "fit":
            return
        batches = trainer.accumulate_grad_batches * self.factor
        obstacle = None
        if not module.automatic_optimization:
            obstacle = "training_step itself steps the optimizer"
        elif any(
            isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks
        ):
            obstacle = "GradientAccumulationScheduler says how many batches it takes"
        elif batches.denominator != 1:
            obstacle = (
                f"{trainer.accumulate_grad_batches * self.most} batches cannot be dealt out evenly"
                f" to {self.size} workers"
            )
        self.keeps_step = obstacle is None or self.size == self.most
        if obstacle is None:
            trainer.accumulate_grad_batches = int(batches)
            self.policy = f"global batch kept: accumulate_grad_batches={int(batches)}"
        elif self.size == self.most:
            self.policy = "global batch as it was asked for"
        else:
            self.policy = (
                f"batch of each worker kept, so that a step takes {self.factor**-1} of the data,"
                f" since {obstacle}; schedules follow the samples seen"
            )
        self.policy += "; learning rate unchanged"

    def meant(self, loader: CombinedLoader, accumulate: int) -> tuple[float, int]:
        """Return how many batches an epoch has for each of all workers, and how many a step takes.

        Args:
            loader: the training data of this worker.
            accumulate: batches that a step takes of each of the workers that there are.
        """
        number = loader.num_batches_of(self.most, self.factor)
        return number, int(accumulate / self.factor) if self.keeps_step else accumulate

    def schedule_count(
        self, loader: CombinedLoader, batch: int, number: float, accumulate: int
    ) -> int | None:
        """Return the batch at which all the workers would have stepped the schedulers.

        None if they would not have since the step before.

        Args:
            loader: the training data of this worker.
            batch: the number of the batch after which the optimizer has just stepped.
            number: batches of the epoch.
            accumulate: batches of a step.
        """
        meant, meant_accumulate = self.meant(loader, accumulate)
        if number == float("inf"):
            rate = Fraction(1) if self.keeps_step else 1 / self.factor
        else:
            rate = Fraction(
                math.ceil(meant / meant_accumulate), max(1, math.ceil(number / accumulate))
            )
        step = math.ceil(batch / accumulate)
        now = math.floor(step * rate)
        if now == math.floor((step - 1) * rate):
            return None
        return int(min(now * meant_accumulate, meant))

    def go_on(
        self, progress: Progress, accumulate: int, ranks: Sequence[StateDict | None]
    ) -> int | None:
        """Count the batches that were read as so many workers would have counted them.

        That says from where the fit goes on.

        Args:
            progress: the counters of the checkpoint, which are changed.
            accumulate: batches whose gradients add up to one optimizer step.
            ranks: the states in the checkpoint of the ranks that saved it.

        Returns:
            The batches of the epoch as they were counted before, None if the count is the same.
        """
        counted_before = None
        if ranks and len(ranks) != self.size:
            before = progress.total_batches - progress.batch
            number = progress.batch * len(ranks) // self.size
            if progress.in_epoch:
                counted_before = progress.batch
                is_within_step = any(one and one.get("gradients") for one in ranks)
                number = _go_on_at(number, accumulate, is_within_step)
            progress.batch = number
            progress.total_batches = before * len(ranks) // self.size + number
        self.tell(f"from epoch {progress.epoch}, batch {progress.batch}, step {progress.steps}")
        return counted_before

    def tell(self, where: str) -> None:
        """Tell the driver where the job begins or goes on, and how its batches are treated."""
        if self.screen is not None:
            self.screen.went_on("; ".join(filter(None, (where, self.policy))))


def _go_on_at(number: int, accumulate: int, is_within_step: bool) -> int:
    """Return the batch of the epoch that a fit goes on at.

    Args:
        number: the batch as these workers count.
        accumulate: batches of a step.
        is_within_step: whether the checkpoint holds gradients of a step that is not whole.
    """
    if not is_within_step:
        return number - number % accumulate  # the next batch is the first of a step
    if number % accumulate == 0:
        info(
            "The checkpoint was saved within a step whose batches cannot be shared out among these"
            " workers: they are left out of it."
        )
    return number
