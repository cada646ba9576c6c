"""What a rank leaves for its parent, in files: its result, or what ended it."""

from __future__ import annotations

import contextlib
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import cloudpickle

from raylit.core.job import Result
from raylit.errors import LaunchError
from raylit.parallel import is_lost_peer

RESULT, FAILURE = "result", "failure"


class RankTraceback(Exception):
    """The traceback of an exception in a rank, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@dataclass(frozen=True)
class Failure:
    """What ended a rank.

    Attributes:
        rank: which.
        at: seconds since the epoch when that was.
        text: the traceback.
        parts: class, arguments and attributes of the exception, pickled; None if they cannot be.
        is_consequence: whether it only says that another rank could not be reached.
    """

    rank: int
    at: float
    text: str
    parts: bytes | None
    is_consequence: bool

    @staticmethod
    def of(error: BaseException, rank: int) -> Failure:
        """Return what tells the parent of an exception, which is being handled."""
        text = "".join(traceback.format_exception(error))
        try:
            # As the class in Python itself would be pickled: a user's __init__ may want other
            # arguments than those of its base.
            _, arguments, *state = _builtin_of(type(error)).__reduce__(error)
            parts = cloudpickle.dumps((type(error), arguments, state[0] if state else {}))
            cloudpickle.loads(parts)
        except Exception:  # whatever the user's own attributes raise when pickled
            parts = None
        is_consequence = isinstance(error, Exception) and is_lost_peer(error)
        return Failure(rank, time.time(), text, parts, is_consequence)

    def original(self) -> BaseException:
        """Return the exception, or one with the same text if it could not be pickled."""
        if self.parts is None:
            last = self.text.strip().splitlines()[-1]
            return LaunchError(
                f"{last} (this stands for the original exception, which cannot be pickled)"
            )
        kind, arguments, state = cloudpickle.loads(self.parts)
        error: BaseException = kind.__new__(kind, *arguments)
        with contextlib.suppress(TypeError):
            _builtin_of(kind).__init__(error, *arguments)
        error.__setstate__(state)
        return error

    def raise_original(self) -> NoReturn:
        """Raise the exception, with the traceback of its rank as its cause."""
        raise self.original() from RankTraceback(self.text)


def _builtin_of(kind: type[BaseException]) -> Any:
    """Return the class in Python itself that a class of exceptions is derived from."""
    return next(one for one in kind.__mro__ if one.__module__ == "builtins")


def leave_result(folder: Path, result: Result) -> None:
    """Leave rank 0's result, but for attributes of callbacks that cannot be pickled."""
    if result.state is not None:
        for callback in result.state["callbacks"]:
            callback.leave_behind(cloudpickle.dumps)
    _write(folder / RESULT, cloudpickle.dumps(result))


def leave_failure(folder: Path, error: BaseException, rank: int) -> None:
    """Leave what ended a rank."""
    _write(folder / f"{FAILURE}-{rank}", cloudpickle.dumps(Failure.of(error, rank)))


def result_in(folder: Path) -> Result | None:
    """Return rank 0's result, None if it has left none."""
    path = folder / RESULT
    if not path.exists():
        return None
    result: Result = cloudpickle.loads(path.read_bytes())
    return result


def has_failed(folder: Path) -> bool:
    """Tell whether a rank has left what ended it."""
    return any(folder.glob(f"{FAILURE}-*[0-9]"))


def failures_in(folder: Path) -> list[Failure]:
    """Return what ranks have left of their ends, the first one first."""
    found: list[Failure] = [
        cloudpickle.loads(path.read_bytes()) for path in folder.glob(f"{FAILURE}-*[0-9]")
    ]
    return sorted(found, key=lambda failure: failure.at)


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)
