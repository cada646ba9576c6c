"""When PyTorchProfiler records.

A schedule of torch.profiler, counted for training, validation, test and prediction on its own.
"""

from __future__ import annotations

from collections.abc import Callable

from torch.profiler import ProfilerAction

STEPS = ("training_step", "validation_step", "test_step", "predict_step")


def default_schedule(step: int) -> ProfilerAction:
    """Leave one step out, warm up in one, record three."""
    act = ProfilerAction
    return (act.NONE, act.WARMUP, act.RECORD, act.RECORD, act.RECORD_AND_SAVE)[step % 5]


class StepSchedule:
    """Asks a schedule with the number of steps of the kind that runs, and records each kind once.

    torch's profiler counts all steps together, so a schedule would end in the sanity check, or in
    the middle of a validation.

    Args:
        schedule: from the number of a step to what is to be done in it, as
            `torch.profiler.schedule` makes.
    """

    def __init__(self, schedule: Callable[[int], ProfilerAction]) -> None:
        self.schedule = schedule
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.num_steps = dict.fromkeys(STEPS, 0)
        self.finished: set[str] = set()
        self.kind: str | None = None
        self.within_fit = False
        self._before: ProfilerAction | None = None

    @property
    def num_step(self) -> int:
        """Steps taken of the kind that runs."""
        return self.num_steps[self.kind] if self.kind else 0

    def __call__(self, num_step: int) -> ProfilerAction:
        """Return the profiler's next action; torch's own count is ignored."""
        if self.kind is None or self.kind in self.finished:
            return ProfilerAction.NONE
        in_sanity_check = (
            self.kind == "validation_step"
            and self.within_fit
            and not self.num_steps["training_step"]
        )
        if not in_sanity_check:
            self.num_steps[self.kind] += 1
        action = self.schedule(self.num_steps[self.kind])
        if self._before is ProfilerAction.RECORD and action is ProfilerAction.WARMUP:
            # One kind was recorded when another begins: torch cannot go back to warming up
            action = ProfilerAction.RECORD
        if action is ProfilerAction.RECORD_AND_SAVE:
            self.finished.add(self.kind)
        self._before = action
        return action
