"""Moving checkpoints from temporary names into place, and deleting those of killed processes.

Whoever writes under a temporary name holds a lock on it, which the system releases when the process
ends, however it ends. So a file that nobody has locked belongs to nobody: not its age, but its lock
tells whether it may be deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from raylit.runtime.messages import warn

LOCK = "lock"  # in a folder that is being written
AT_FDCWD = -100
RENAME_EXCHANGE = 2


def temporary_name(target: str, ending: str) -> str:
    """Return a new name beside `target`, that no pattern for checkpoints matches."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.{uuid.uuid4().hex[:8]}.{ending}")


@contextlib.contextmanager
def locked_file(path: str) -> Iterator[None]:
    """Make a file that is locked until the block ends."""
    with open(path, "wb") as file:
        _lock(file.fileno())
        yield


class LockedFolder:
    """A new folder that is locked until it is released.

    Args:
        path: its name, which ends in `.part`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        made = f"{path}.new"  # a folder that has its name has its lock
        os.makedirs(made)
        self._lock = open(os.path.join(made, LOCK), "wb")  # noqa: SIM115  (kept open)
        _lock(self._lock.fileno())
        os.rename(made, path)

    def release(self, path: str) -> None:
        """Delete the lock: the folder is finished, and is called `path` now, or it is given up."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(path, LOCK))
        self._lock.close()


def _lock(handle: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_left(path: str) -> bool:
    """Tell whether no living process holds the lock of a temporary file."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        # Fails on a file system without locks too: where nothing can be told, nothing is deleted
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def remove_left(folder: str) -> None:
    """Delete the unfinished checkpoints that killed processes have left in a folder.

    A checkpoint that one of them had moved out of the way, and not yet replaced, gets its name
    back.
    """
    for old in Path(folder).glob(".*.old"):
        unfinished = old.with_suffix("")
        if unfinished.suffix not in (".part", ".tmp"):
            continue  # not one that `put` has moved
        target = old.with_name(unfinished.with_suffix("").stem[1:])
        lock = unfinished / LOCK if unfinished.suffix == ".part" else unfinished
        if not os.path.lexists(target):
            with contextlib.suppress(OSError):
                os.rename(old, target)
        elif _is_left(str(lock)):
            remove(str(old))
    for part in Path(folder).glob(".*.part"):
        if _is_left(str(part / LOCK)):
            remove(str(part))
    for file in Path(folder).glob(".*.ckpt.*.tmp"):
        if _is_left(str(file)):
            remove(str(file))


def remove(path: str) -> None:
    """Delete a file, a link or a folder; one that cannot be deleted is warned of."""
    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            Path(path).unlink(missing_ok=True)
    except OSError as error:
        warn(f"{path} is no longer needed, but could not be deleted: {error}")


def put(temporary: str, target: str) -> None:
    """Rename a folder; one that has the name already is there until the new one is, and gone then.

    Raises:
        OSError: it could not be renamed; what stood at `target` still does.
    """
    if not os.path.lexists(target):
        os.rename(temporary, target)
        return
    if _exchange(temporary, target):
        remove(temporary)
        return
    before = f"{temporary}.old"  # `remove_left` knows whose it was
    os.rename(target, before)
    try:
        os.rename(temporary, target)
    except OSError:
        os.rename(before, target)
        raise
    remove(before)


def _exchange(one: str, other: str) -> bool:
    """Let two paths change their names at once; False where the system cannot."""
    try:
        # Python has no function for it; glibc has since 2.28
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    result: int = rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return result == 0
