"""Checkpoints being written in the background, and calls that wait until they are on the disk."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

# By path, in the order in which they began; one that could not be written stays until it was asked
# for
_writing: dict[str, Future[None]] = {}
# What the last of them entails, one after the other: deletions, second names
_entailed: list[Future[None]] = []
_undone: list[BaseException] = []  # why something of that could not be done; nobody was told yet

NOT_SAVED = "Could not write the checkpoint {}: {}. What stood there before is untouched."


def begin(path: str, written: Future[None]) -> None:
    """Note that the checkpoint `path` is being written, until `written` is done.

    `wait` comes before the next.
    """
    # So that it comes last: `when_written` goes by the newest
    _writing.pop(path, None)
    _writing[path] = written


def is_pending(path: str) -> bool:
    """Tell whether a checkpoint is being written that is to be called `path`."""
    return path in _writing and not _writing[path].done()


def when_written(action: Callable[[], None]) -> None:
    """Do something to files now, or while a checkpoint is being written, after that.

    Not at all if that fails, so that those before it stay. Actions are done one after the other, in
    the order in which they came, and `wait` waits for them too.
    """
    written = next(reversed(_writing.values()), None)
    before = _entailed[-1] if _entailed else written
    if written is None or before is None or before.done():
        if written is None or written.exception() is None:
            action()
        return
    # A future of its own: who waits for `written` goes on before its callbacks have ended
    done: Future[None] = Future()
    _entailed.append(done)

    def act(_: Future[None]) -> None:
        try:
            if written.exception() is None:
                action()
        except Exception as error:
            done.set_exception(error)  # `failures` tells
        else:
            done.set_result(None)

    before.add_done_callback(act)


def wait() -> None:
    """Wait until nothing is being written any more, and all that it entails is done."""
    for path, written in list(_writing.items()):
        if written.exception() is None:
            del _writing[path]
    _undone.extend(error for done in _entailed if (error := done.exception()) is not None)
    _entailed.clear()


def outcome(path: str) -> BaseException | None:
    """Wait for the checkpoint `path`, and return why it could not be written; None if it was.

    It is told once.
    """
    written = _writing.pop(path, None)
    return None if written is None else written.exception()


def failures() -> list[str]:
    """Wait, and return descriptions of the failures that nobody has asked about.

    Each is told once.
    """
    wait()
    found = [(path, error) for path in list(_writing) if (error := outcome(path)) is not None]
    texts = [*(NOT_SAVED.format(path, error) for path, error in found), *map(str, _undone)]
    _undone.clear()
    return texts
