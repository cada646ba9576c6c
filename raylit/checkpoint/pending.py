"""What is being written in the background, and what is to be done once it is on the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

from raylit.errors import CheckpointError

_writing: dict[str, Future[None]] = {}  # by path; the last one at most is not done yet


def begin(path: str, written: Future[None]) -> None:
    """Note that the checkpoint `path` is being written, until `written` is done.

    `wait` comes before the next.
    """
    _writing[path] = written


def is_pending(path: str) -> bool:
    """Tell whether a checkpoint is being written that is to be called `path`."""
    return path in _writing and not _writing[path].done()


def when_written(action: Callable[[], None]) -> None:
    """Do something to files now, or if a checkpoint is being written, after that.

    Not at all if that fails, so that those before it stay.
    """
    last = next(reversed(_writing.values()), None)
    if last is None or last.done():
        action()
    else:
        last.add_done_callback(lambda done: action() if done.exception() is None else None)


def wait() -> None:
    """Wait until what is being written is on the disk.

    Raises:
        CheckpointError: it could not be written.
    """
    try:
        for path, written in _writing.items():
            error = written.exception()
            if error is not None:
                raise CheckpointError(
                    f"Could not write the checkpoint {path}: {error}. What stood there before is"
                    " untouched."
                ) from error
    finally:
        _writing.clear()
