"""What is being written in the background, and what is to be done once it is on the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

# By path, in the order in which they began; one that could not be written stays until it was asked for
_writing: dict[str, Future[None]] = {}


def begin(path: str, written: Future[None]) -> None:
    """Note that the checkpoint `path` is being written, until `written` is done.

    `wait` comes before the next.
    """
    _writing.pop(path, None)
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
    """Wait until nothing is being written any more."""
    for path, written in list(_writing.items()):
        if written.exception() is None:
            del _writing[path]


def outcome(path: str) -> BaseException | None:
    """Wait for the checkpoint `path`, and return why it could not be written; None if it was.

    It is told once.
    """
    written = _writing.pop(path, None)
    return None if written is None else written.exception()


def failures() -> dict[str, BaseException]:
    """Wait, and return why checkpoints that nobody has asked for could not be written, by path."""
    wait()
    return {path: error for path in list(_writing) if (error := outcome(path)) is not None}
