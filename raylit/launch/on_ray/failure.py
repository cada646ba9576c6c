"""Failures, as the user is told of them.

The user's own exception, with the user's own lines, or why a worker ended.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

import ray
from ray.train.v2.api.exceptions import PreemptionError

from raylit.errors import LaunchError
from raylit.launch.carried_error import WorkerTraceback, packed
from raylit.launch.on_ray.mailbox import (
    LOW_MEMORY,
    WorkerFailure,
    is_consequence,
    is_leave,
    is_ours,
    reasons_of,
)
from raylit.parallel import is_lost_peer
from raylit.runtime.tracebacks import traceback_of

if TYPE_CHECKING:
    from ray.train.v2.api.config import FailureConfig
    from ray.train.v2.api.exceptions import TrainingFailedError
else:  # the same, but mypy does not see that they are of Ray Train 2
    from ray.train import FailureConfig, TrainingFailedError

# What is raised by asking something of an actor that has died
DEAD = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
)


def failure_config(max_failures: int | FailureConfig) -> FailureConfig:
    """Return Ray's FailureConfig for `Trainer(max_failures=...)`.

    A number, or the config itself.
    """
    return (
        max_failures
        if isinstance(max_failures, FailureConfig)
        else FailureConfig(max_failures=max_failures)
    )


def less(failures: FailureConfig, num_failures: int) -> FailureConfig:
    """Return a FailureConfig that allows the failures that are left after some."""
    if failures.max_failures == -1 or not num_failures:
        return failures
    return dataclasses.replace(failures, max_failures=max(0, failures.max_failures - num_failures))


def failure_of(error: BaseException) -> WorkerFailure:
    """Return the WorkerFailure that carries `error`, which is being handled, to the driver."""
    return WorkerFailure(
        time.time(),
        traceback_of(error),
        packed(error),
        isinstance(error, Exception) and is_lost_peer(error),
    )


@dataclasses.dataclass
class ControllerDied:
    """Returned when Ray Train's controller, which watches the workers, has died."""

    why: str


def raise_original(error: TrainingFailedError) -> NoReturn:
    """Raise the user's own exception that ended the run: the first, if several ranks failed.

    Raises:
        LaunchError: no exception of user code ended it: a worker died, hung or could not be
            started.
    """
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    own = [
        failure for failure in failures.values() if is_ours(failure) and not is_consequence(failure)
    ]
    if own:
        first = min(own, key=lambda failure: failure.at)
        raise first.original() from WorkerTraceback(first.text)
    if isinstance(error, PreemptionError) or any(
        is_leave(failure) for failure in failures.values()
    ):
        raise LaunchError(
            "A node was taken away, or is about to be, and"
            " FailureConfig(max_preemption_failures=...) allows no further restart."
            " fit(ckpt_path='last') goes on."
        ) from error
    reasons = reasons_of(failures) or [str(error).strip().splitlines()[-1]]
    raise LaunchError(
        f"The Ray workers ended without finishing ({'; '.join(reasons)}).{advice(reasons)}"
    ) from error


def advice(reasons: Iterable[str]) -> str:
    """Return advice about workers that ended for these reasons."""
    again = " Trainer(max_failures=1) has them restarted, a fit from its newest checkpoint."
    less = (
        " Fewer workers on a node (resources_per_worker={'CPU': 4}), smaller batches or fewer"
        " workers of loaders need less memory."
    )
    return again + (less if any(LOW_MEMORY in reason for reason in reasons) else "")
