"""Checkpoint files in their folders.

Look for, list, delete, give a second name. Local paths and fsspec URLs.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from raylit.checkpoint import pending, place
from raylit.errors import NotSavedError
from raylit.runtime.messages import warn
from raylit.runtime.storage import asking, file_system, fresh, local, unwritable


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a local path without `~`, links and dots; URLs as they are."""
    path = local(path)
    return path if "://" in path else os.path.realpath(os.path.expanduser(path))


def exists(path: str) -> bool:
    """Tell whether something is called `path`, be it a link to nowhere, or is about to be.

    Raises:
        NotSavedError: the file system of a URL does not answer.
    """
    if "://" not in path:
        return os.path.lexists(path) or pending.is_pending(path)
    fs, inner = fresh(path)
    try:
        with asking():
            return bool(fs.exists(inner))
    except OSError as error:
        raise NotSavedError(
            f"It could not be found out whether there is a {path}: {error}."
        ) from error


def check_writable(folder: str) -> None:
    """Find out whether checkpoints can be written to a folder or URL.

    Raises:
        NotSavedError: they cannot.
        MissingPackageError: a package for the URL is not installed.
        ConfigError: the URL names no known file system.
    """
    problem = unwritable(folder)
    if problem:
        raise NotSavedError(
            f"Nothing can be written to {folder}: {problem}. Correct that, or give another place."
        )


def listing(folder: str) -> Sequence[object]:
    """Return the entries of `folder`; nothing if there is no such folder."""
    if "://" not in folder:
        return os.listdir(folder) if os.path.isdir(folder) else []
    fs, inner = fresh(folder)
    with asking():
        return list(fs.ls(inner)) if fs.isdir(inner) else []


def newest_first(folder: str, pattern: str) -> list[str]:
    """Return the paths in `folder` that match a pattern such as `**/*.ckpt`, the newest first.

    Buckets know the second of a file only: of those of one, that with the higher numbers in its
    name comes first.
    """
    if "://" not in folder:
        # A link to nowhere, such as a `last` whose file is gone, has no time to be sorted by
        found = [str(path) for path in Path(folder).glob(pattern) if path.exists()]
    else:
        fs, inner = fresh(folder)
        with asking():
            found = [fs.unstrip_protocol(path) for path in fs.glob(f"{inner}/{pattern}")]
    numbers = {
        path: [int(number) for number in re.findall(r"\d+", os.path.basename(path))]
        for path in found
    }
    return sorted(found, key=lambda path: (modified(path), numbers[path]), reverse=True)


def remove_unfinished(folder: str) -> None:
    """Delete the unfinished checkpoints that killed processes have left in a local folder."""
    if "://" not in folder and os.path.isdir(folder):
        place.remove_left(folder)


def remove_if_empty(folder: str) -> None:
    """Delete a local folder if there is nothing in it."""
    if os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)


def modified(path: str) -> float:
    """Return when a file was written last, in seconds since 1970."""
    if "://" not in path:
        return os.stat(path).st_mtime
    fs, inner = file_system(path)
    with asking():
        return float(fs.modified(inner).timestamp())


def remove(path: str) -> None:
    """Delete a file, or the folder that a sharded checkpoint is.

    Nothing happens if it is gone already.

    While a checkpoint is written in the background nothing is deleted until that is whole; likewise
    for second names.
    """
    pending.when_written(lambda: _remove(path))


def _remove(path: str) -> None:
    if "://" in path:
        fs, inner = fresh(path)
        try:
            with asking():
                if fs.exists(inner):
                    fs.rm(inner, recursive=True)
        except OSError as error:
            warn(f"{path} is no longer needed, but could not be deleted: {error}")
    else:
        place.remove(path)


def give_second_name(path: str, name: str, *, symbolic: bool = False) -> None:
    """Make `name` a second name of the checkpoint `path`, replacing a file of that name.

    It is a link where the storage has links, else a copy.

    Args:
        path: the checkpoint.
        name: path of its second name, on the same file system.
        symbolic: whether the link is to be a relative symbolic one rather than a hard one, which
            outlives the deletion of `path`.

    Raises:
        NotSavedError: there is no room for it.
    """

    def give() -> None:
        try:
            _give_second_name(path, name, symbolic)
        except OSError as error:
            raise NotSavedError(
                f"The checkpoint {path} could not also be called {name}: {error}."
            ) from error

    pending.when_written(give)


def _give_second_name(path: str, name: str, symbolic: bool) -> None:
    if "://" in path:
        fs, inner = file_system(path)
        with asking():
            fs.cp_file(inner, file_system(name)[1])
        return
    if path == name:
        return
    os.makedirs(os.path.dirname(name), exist_ok=True)
    # A folder can have no hard link
    if os.path.isdir(path) and not symbolic:
        _copy_folder(path, name)
        return
    # No link can be made over a name that is taken; and so `name` is never missing
    temporary = place.temporary_name(name, "tmp")
    try:
        if symbolic:
            # Relative, so that the folder can be moved
            os.symlink(os.path.relpath(path, os.path.dirname(name)), temporary)
        else:
            os.link(path, temporary)
    except OSError:  # a file system without links
        if os.path.isdir(path):
            _copy_folder(path, name)
            return
        with place.locked_file(temporary):
            shutil.copyfile(path, temporary)
    if os.path.isdir(name) and not os.path.islink(name):
        place.put(temporary, name)  # a rename cannot replace a folder
    else:
        os.replace(temporary, name)


def _copy_folder(path: str, name: str) -> None:
    temporary = place.temporary_name(name, "part")
    made = place.LockedFolder(temporary)
    try:
        shutil.copytree(path, temporary, dirs_exist_ok=True)
        place.put(temporary, name)
    except BaseException:
        made.release(temporary)
        place.remove(temporary)
        raise
    made.release(name)
