"""Timer: how long the stages take, and a limit for training."""

from __future__ import annotations

import re
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from raylit.core.callback import Callback
from raylit.errors import ConfigError, did_you_mean
from raylit.runtime.aliases import Batch, StateDict, StepOutput
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer
    from raylit.runtime.ranks import Ranks

STAGES = ("train", "sanity_check", "validate", "test", "predict")
MAX_BATCHES_UNASKED = 64


def parse_duration(
    duration: str | timedelta | dict[str, int] | None, argument: str = "Timer(duration={})"
) -> timedelta | None:
    """Return the duration that a user means.

    Args:
        duration: `DD:HH:MM:SS`, a timedelta, the arguments of one, or None.
        argument: as which it was given, for what an error says; `{}` stands for the value.

    Raises:
        ConfigError: it is none of these.

    Example:
        >>> parse_duration("00:12:00:00")
        datetime.timedelta(seconds=43200)
    """
    if duration is None or isinstance(duration, timedelta):
        return duration
    if isinstance(duration, dict):
        try:
            return timedelta(**duration)
        except TypeError as error:
            raise ConfigError(
                f"The duration {duration!r} is not understood: {error}. Give the arguments of a"
                " timedelta: {'hours': 12}."
            ) from error
    match = (
        re.fullmatch(r"\s*(\d+):(\d\d):(\d\d):(\d\d)\s*", duration)
        if isinstance(duration, str)
        else None
    )
    if match is None:
        raise ConfigError(
            f"`{argument.format(repr(duration))}` is not a valid duration. "
            f"The duration {duration!r} is not of the form DD:HH:MM:SS. Write, for 12 hours:"
            " '00:12:00:00'."
        )
    days, hours, minutes, seconds = map(int, match.groups())
    try:
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    except OverflowError:
        raise ConfigError(
            f"The duration {duration!r} is longer than {timedelta.max.days:,} days. Leave it out"
            " for no limit."
        ) from None


class SharedDeadline:
    """Lets all ranks find at the same batch that time is up, without a collective at every batch.

    Rank 0's clock decides. With its verdict it says after how many batches to ask again: as many as
    fit into half of the time that is left, at the pace so far, and at most 64. So the limit is met
    to the batch or two, and hours cost little.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Ask at the next batch. To be called on all ranks."""
        self._ask_after = 1
        self._num_batches = 0
        self._asked_at: float | None = None

    def is_reached(self, world: Ranks, left_s: float) -> bool:
        """Tell whether time is up. To be called on all ranks, once per batch.

        Args:
            world: this rank's.
            left_s: seconds left by this rank's clock.
        """
        if world.size == 1:
            return left_s <= 0
        self._num_batches += 1
        if self._num_batches < self._ask_after:
            return False
        now = time.monotonic()
        num_fitting = 1.0
        if self._asked_at is not None:
            batch_s = (now - self._asked_at) / self._num_batches
            num_fitting = left_s / 2 / batch_s if batch_s > 0 else MAX_BATCHES_UNASKED
        answer = (left_s <= 0, int(min(max(num_fitting, 1), MAX_BATCHES_UNASKED)))
        is_up, self._ask_after = world.broadcast_object(answer)
        self._num_batches = 0
        self._asked_at = now
        return bool(is_up)


class Timer(Callback):
    """Measures how long training, validation and test take, and stops training when its time is up.

    The time is kept in checkpoints: a run that goes on from one has the time that was left then.

    Args:
        duration: limit for training: `DD:HH:MM:SS`, a timedelta, or the arguments of one as a dict.
            None: no limit.
        interval: `step` stops after any batch, `epoch` only at the end of an epoch.
        verbose: whether to say that the limit was reached.

    Raises:
        ConfigError: the duration is not understood, or there is no such interval.

    Example:
        >>> timer = Timer(duration="00:00:00:01")  # a second; 12 hours are "00:12:00:00"
        >>> trainer = Trainer(max_epochs=-1, callbacks=[timer])
        >>> result = trainer.fit(model, train_dataloaders=loader)
        >>> timer.time_elapsed("train"), timer.time_remaining()  # seconds
    """

    def __init__(
        self,
        duration: str | timedelta | dict[str, int] | None = None,
        interval: str = "step",
        verbose: bool = True,
    ) -> None:
        if interval not in ("step", "epoch"):
            raise ConfigError(f"Timer(interval={interval!r}) is not known. Use 'step' or 'epoch'.")
        parsed = parse_duration(duration)
        self._duration = parsed.total_seconds() if parsed is not None else None
        self._given_duration = parsed
        self._interval = str(interval)
        self._verbose = verbose
        self._start_time: dict[str, float | None] = dict.fromkeys(STAGES)
        self._end_time: dict[str, float | None] = dict.fromkeys(STAGES)
        self._offset = 0.0
        self._deadline = SharedDeadline()

    def start_time(self, stage: str = "train") -> float | None:
        """Return when a stage last began, in seconds of a monotonic clock; None if it did not."""
        return self._start_time[_known(stage)]

    def end_time(self, stage: str = "train") -> float | None:
        """Return when a stage last ended, in seconds of a monotonic clock; None if it did not."""
        return self._end_time[_known(stage)]

    def time_elapsed(self, stage: str = "train") -> float:
        """Return the seconds spent in a stage.

        For training also those of the runs that this one goes on from.
        """
        start = self.start_time(stage)
        end = self.end_time(stage)
        before = self._offset if stage == "train" else 0.0
        if start is None:
            return before
        return (time.monotonic() if end is None else end) - start + before

    def time_remaining(self, stage: str = "train") -> float | None:
        """Return the seconds left, below 0 if the limit is passed; None without a limit."""
        return None if self._duration is None else self._duration - self.time_elapsed(stage)

    def config_arguments(self) -> dict[str, object]:
        return {"duration": self._given_duration}

    def on_fit_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._deadline.restart()
        # A checkpoint may have been loaded whose time was up already
        if self._duration is not None:
            self._stop_if(
                trainer, trainer.world.broadcast_object(self.time_elapsed() >= self._duration)
            )

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._begin("train")

    def on_train_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._end_time["train"] = time.monotonic()

    def on_validation_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._begin("validate")

    def on_validation_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._end_time["validate"] = time.monotonic()

    def on_test_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._begin("test")

    def on_test_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._end_time["test"] = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if self._duration is not None and self._interval == "step":
            self._stop_if(
                trainer,
                self._deadline.is_reached(trainer.world, self._duration - self.time_elapsed()),
            )

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._duration is not None and self._interval == "epoch":
            self._stop_if(
                trainer, trainer.world.broadcast_object(self.time_elapsed() >= self._duration)
            )

    def state_dict(self) -> StateDict:
        return {"time_elapsed": {stage: self.time_elapsed(stage) for stage in STAGES}}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._offset = state_dict.get("time_elapsed", {}).get("train", 0.0)
        # Of a fit before in this process: what counts of it is in the offset
        self._start_time["train"] = self._end_time["train"] = None

    def _begin(self, stage: str) -> None:
        self._start_time[stage] = time.monotonic()
        self._end_time[stage] = None

    def _stop_if(self, trainer: RunningTrainer, is_up: bool) -> None:
        if not is_up:
            return
        if self._verbose and not trainer.should_stop:
            info(
                "Time limit reached. Elapsed time is"
                f" {timedelta(seconds=int(self.time_elapsed()))}. Signaling Trainer to stop."
            )
        trainer.should_stop = True


def _known(stage: str) -> str:
    if stage not in STAGES:
        raise ConfigError(
            f"Timer knows no stage {stage!r}; there are:"
            f" {', '.join(STAGES)}.{did_you_mean(stage, STAGES)}"
        )
    return stage
