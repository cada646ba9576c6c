"""The states of the Trainer.

Names that compare equal to the strings they stand for, whatever their case.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Self


# The text of a member is TrainerFn.FITTING, as it is in Lightning, not fit.
class LightningEnum(str, Enum):  # noqa: UP042
    """An enumeration whose members equal their values in any case: `TrainerFn.FITTING == "fit"`."""

    @classmethod
    def from_str(cls, value: str, source: str = "key") -> Self:
        """Return the member of a name or a value.

        Args:
            value: the name or the value.
            source: `key` looks among the names (in any case), `value` among the values, `any` among
                both.

        Raises:
            ValueError: there is none.
        """
        for member in cls:
            if source in ("key", "any") and member.name.lower() == value.lower():
                return member
        for member in cls:
            if source in ("value", "any") and member.value == value:
                return member
        raise ValueError(
            f"{cls.__name__} has no member {value!r}; it has:"
            f" {', '.join(f'{member.name} = {member.value!r}' for member in cls)}."
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Enum):
            other = other.value
        return isinstance(other, str) and self.value.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.value.lower())


class TrainerFn(LightningEnum):
    """Which entry point of the Trainer runs."""

    FITTING = "fit"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"


class TrainerStatus(LightningEnum):
    """How it stands."""

    INITIALIZING = "initializing"
    RUNNING = "running"
    FINISHED = "finished"
    INTERRUPTED = "interrupted"

    @property
    def stopped(self) -> bool:
        """Whether no job runs, after one did."""
        return self in (TrainerStatus.FINISHED, TrainerStatus.INTERRUPTED)


class RunningStage(LightningEnum):
    """The stages of an entry point: a fit has three."""

    TRAINING = "train"
    SANITY_CHECKING = "sanity_check"
    VALIDATING = "validate"
    TESTING = "test"
    PREDICTING = "predict"

    @property
    def evaluating(self) -> bool:
        """Whether metrics are computed without training."""
        return self in (RunningStage.VALIDATING, RunningStage.TESTING, RunningStage.SANITY_CHECKING)

    @property
    def dataloader_prefix(self) -> str:
        """The beginning of the name of this stage's loader hook."""
        return (
            "val" if self in (RunningStage.VALIDATING, RunningStage.SANITY_CHECKING) else self.value
        )


@dataclass
class TrainerState:
    """Which entry point runs, in which stage, and how it stands."""

    status: TrainerStatus = TrainerStatus.INITIALIZING
    fn: TrainerFn | None = None
    stage: RunningStage | None = None

    @property
    def finished(self) -> bool:
        """Whether the last job ended without an exception."""
        return self.status == TrainerStatus.FINISHED

    @property
    def stopped(self) -> bool:
        """Whether no job runs, after one did."""
        return self.status.stopped
