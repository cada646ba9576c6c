"""What is told of a failure: the user's own exception, with the user's own lines, or why a worker ended."""

from __future__ import annotations

import dataclasses
import os
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from ray import cloudpickle
from ray.train import FailureConfig, TrainingFailedError
from ray.train.v2.api.exceptions import PreemptionError

from raylit.errors import LaunchError
from raylit.launch.cluster import is_verbose
from raylit.launch.remote import WorkerFailure, is_consequence, is_leave, is_ours, last_line, reasons_of
from raylit.parallel import is_lost_peer

OURS = str(Path(__file__).parents[1]) + os.sep


def failure_config(max_failures: Any) -> Any:
    """Return Ray's FailureConfig for `Trainer(max_failures=...)`: a number, or the config itself."""
    return max_failures if isinstance(max_failures, FailureConfig) else FailureConfig(max_failures=max_failures)


def less(failures: Any, num_failures: int) -> Any:
    """Return a FailureConfig that allows what is left after some failures."""
    if failures.max_failures == -1 or not num_failures:
        return failures
    return dataclasses.replace(failures, max_failures=max(0, failures.max_failures - num_failures))


def failure_of(error: BaseException) -> WorkerFailure:
    """Return what carries `error`, which is being handled, to the driver."""
    try:
        parts = cloudpickle.dumps((type(error), error.args, error.__dict__))
        cloudpickle.loads(parts)
    except Exception:  # whatever the user's own attributes raise when pickled
        parts = None
    return WorkerFailure(time.time(), traceback_of(error), parts, isinstance(error, Exception) and is_lost_peer(error))


def original(failure: Any) -> BaseException:
    """Return the exception that a WorkerFailure carries, or one with the same text if it cannot be pickled."""
    if failure.parts is None:
        return LaunchError(f"{last_line(failure.text)} (this stands for the original exception, which cannot be pickled)")
    kind, args, attributes = cloudpickle.loads(failure.parts)
    error: BaseException = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


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


def raise_original(error: TrainingFailedError) -> NoReturn:
    """Raise the user's own exception that ended the run: the first, if several ranks failed.

    Raises:
        LaunchError: no exception of user code ended it: a worker died, hung or could not be started.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    own: list[Any] = [failure for failure in failures.values() if is_ours(failure) and not is_consequence(failure)]
    if own:
        first = min(own, key=lambda failure: failure.at)
        raise original(first) from WorkerTraceback(first.text)
    if isinstance(error, PreemptionError) or any(is_leave(failure) for failure in failures.values()):
        raise LaunchError(
            "A node was taken away, or is about to be, and FailureConfig(max_preemption_failures=...) allows no further restart."
            " fit(ckpt_path='last') goes on."
        ) from error
    reasons = reasons_of(failures) or [str(error).strip().splitlines()[-1]]
    raise LaunchError(
        f"The Ray workers ended without finishing ({'; '.join(reasons)})."
        " Trainer(max_failures=1) has them restarted from the newest checkpoint."
    ) from error
