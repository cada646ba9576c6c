"""What is told of a failure: the user's own exception, with the user's own lines, or why a worker ended."""

from __future__ import annotations

import dataclasses
import os
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray import cloudpickle
from ray.train import FailureConfig, TrainingFailedError

from raylit.errors import LaunchError
from raylit.launch.cluster import is_verbose
from raylit.parallel import is_lost_peer

DEAD = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)  # what is raised by asking something of an actor that has died
LOW_MEMORY = "running low on memory"  # in Ray's words
OURS = str(Path(__file__).parents[1]) + os.sep


def failure_config(max_failures: Any) -> Any:
    """Return Ray's FailureConfig for `Trainer(max_failures=...)`: a number, or the config itself."""
    return max_failures if isinstance(max_failures, FailureConfig) else FailureConfig(max_failures=max_failures)


def less(failures: Any, num_failures: int) -> Any:
    """Return a FailureConfig that allows what is left after some failures."""
    if failures.max_failures == -1 or not num_failures:
        return failures
    return dataclasses.replace(failures, max_failures=max(0, failures.max_failures - num_failures))


class WorkerFailure(Exception):
    """Carries an exception of user code from a worker to the driver, whatever arguments its class wants when it is made.

    Attributes:
        at: seconds since the epoch when it was raised.
        text: its traceback, since tracebacks do not travel.
        parts: class, arguments and attributes of the exception, pickled; None if they cannot be.
    """

    def __init__(self, at: float, text: str, parts: bytes | None) -> None:
        super().__init__(at, text, parts)
        self.at, self.text, self.parts = at, text, parts

    @classmethod
    def of(cls, error: BaseException) -> WorkerFailure:
        """Return what carries `error`, which is being handled."""
        try:
            parts = cloudpickle.dumps((type(error), error.args, error.__dict__))
            cloudpickle.loads(parts)
        except Exception:  # whatever the user's own attributes raise when pickled
            parts = None
        return cls(time.time(), traceback_of(error), parts)

    def original(self) -> BaseException:
        """Return the exception, or one with the same text if it cannot be pickled."""
        if self.parts is None:
            return LaunchError(f"{last_line(self.text)} (this stands for the original exception, which cannot be pickled)")
        kind, args, attributes = cloudpickle.loads(self.parts)
        error: BaseException = kind.__new__(kind, *args)
        error.__dict__.update(attributes)
        return error

    def __str__(self) -> str:
        return self.text


@dataclasses.dataclass
class ControllerDied:
    """What a run gives back whose workers nobody watches any more: the process of Ray Train's that did is dead."""

    why: str


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def traceback_of(error: BaseException) -> str:
    """Return the traceback of an exception as text: from the user's first line on and without raylit's, or, if verbose, all of it."""
    whole = traceback.TracebackException.from_exception(error)
    one: traceback.TracebackException | None = whole
    while one is not None and not is_verbose():
        frames = [frame for frame in one.stack if not frame.filename.startswith(OURS)]
        first = next((index for index, frame in enumerate(frames) if "site-packages" not in frame.filename), 0)
        if frames:
            one.stack = traceback.StackSummary.from_list(frames[first:])
        one = one.__cause__ or one.__context__
    return "".join(whole.format())


def reasons_of(failures: dict[int, Exception]) -> list[str]:
    """Return why ranks failed, in a line each; nothing of those that only lost another rank, if it is known why that one went."""
    telling = {rank: failure for rank, failure in sorted(failures.items()) if not _is_consequence(failure)} or failures
    return [f"rank {rank}: {reason(failure)}" for rank, failure in telling.items()]


def last_line(text: str) -> str:
    """Return the last line of a traceback that is no note: class and text of the exception."""
    lines = [line for line in text.strip().splitlines() if line and not line.startswith((" ", "(raylit)"))]
    return lines[-1] if lines else text.strip()


def raise_original(error: TrainingFailedError) -> NoReturn:
    """Raise the user's own exception that ended the run: the first, if several ranks failed.

    Raises:
        LaunchError: no exception of user code ended it: a worker died, hung or could not be started.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    own = [failure for failure in failures.values() if isinstance(failure, WorkerFailure) and not _is_consequence(failure)]
    if own:
        first = min(own, key=lambda failure: failure.at)
        raise first.original() from WorkerTraceback(first.text)
    reasons = reasons_of(failures) or [str(error).strip().splitlines()[-1]]
    raise LaunchError(f"The Ray workers ended without finishing ({'; '.join(reasons)}).{advice(reasons)}") from error


def advice(reasons: Iterable[str]) -> str:
    """Return what can be done about workers that ended for these reasons."""
    again = " Trainer(max_failures=1) has them restarted from the newest checkpoint."
    less = " Fewer workers on a node (resources_per_worker={'CPU': 4}), smaller batches or fewer workers of loaders need less memory."
    return again + (less if any(LOW_MEMORY in reason for reason in reasons) else "")


def _is_consequence(failure: Exception) -> bool:
    """Tell whether a failure only says that another rank could not be reached."""
    original = failure.original() if isinstance(failure, WorkerFailure) else None
    return isinstance(original, Exception) and is_lost_peer(original)


def reason(failure: BaseException) -> str:
    """Return the telling line: of an exception the last one, of Ray's errors that without its list of what might have been."""
    if isinstance(failure, WorkerFailure):
        return last_line(failure.text)
    text = str(getattr(failure, "health_check_failure", failure)).strip() or type(failure).__name__
    lines = text.splitlines()
    found = next((line.strip() for line in lines if line.strip().startswith("The actor is dead") or LOW_MEMORY in line), lines[0])
    return found.partition(" Some common causes")[0].rstrip(".")
