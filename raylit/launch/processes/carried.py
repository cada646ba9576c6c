"""The files that a rank leaves for its parent: its result, or the failure that ended it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import cloudpickle

from raylit.core.job import Result
from raylit.errors import Terminated
from raylit.launch.carried_error import WorkerTraceback, packed, unpacked
from raylit.parallel import is_lost_peer
from raylit.runtime.tracebacks import traceback_of

RESULT = "result"
FAILURE = "failure"


@dataclass(frozen=True)
class Failure:
    """The failure that ended a rank.

    Attributes:
        rank: which.
        at: seconds since the epoch when that was.
        text: the traceback.
        parts: the exception, as `carried_error.packed` gives it.
        is_consequence: whether it only says that another rank could not be reached, or that this
            one was told to end.
    """

    rank: int
    at: float
    text: str
    parts: bytes
    is_consequence: bool

    @staticmethod
    def of(error: BaseException, rank: int) -> Failure:
        """Return the Failure that tells the parent of an exception, which is being handled."""
        is_consequence = isinstance(error, Terminated) or (
            isinstance(error, Exception) and is_lost_peer(error)
        )
        return Failure(rank, time.time(), traceback_of(error), packed(error), is_consequence)

    def raise_original(self) -> NoReturn:
        """Raise the exception, with the traceback of its rank as its cause."""
        raise unpacked(self.parts) from WorkerTraceback(self.text)


def leave_result(folder: Path, result: Result) -> None:
    """Leave rank 0's result, but for attributes of callbacks that cannot be pickled."""
    if result.state is not None:
        for callback in result.state["callbacks"]:
            callback.leave_behind(cloudpickle.dumps)
    _write(folder / RESULT, cloudpickle.dumps(result))


def leave_failure(folder: Path, error: BaseException, rank: int) -> None:
    """Leave the exception that ended a rank, for the parent."""
    _write(folder / f"{FAILURE}-{rank}", cloudpickle.dumps(Failure.of(error, rank)))


def result_in(folder: Path) -> Result | None:
    """Return rank 0's result, None if it has left none."""
    path = folder / RESULT
    if not path.exists():
        return None
    result: Result = cloudpickle.loads(path.read_bytes())
    return result


def num_failed(folder: Path) -> int:
    """Return how many ranks have left the exception that ended them."""
    return len(list(folder.glob(f"{FAILURE}-*[0-9]")))


def failures_in(folder: Path) -> list[Failure]:
    """Return the failures that ranks have left, the first one first."""
    found: list[Failure] = [
        cloudpickle.loads(path.read_bytes()) for path in folder.glob(f"{FAILURE}-*[0-9]")
    ]
    return sorted(found, key=lambda failure: failure.at)


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
