"""What is done to checkpoint files besides writing and reading them: look for, list, delete, give a second name. Local paths and fsspec URLs."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raylit.checkpoint import pending

if TYPE_CHECKING:
    from raylit.loggers import Logger


def is_url(path: str) -> bool:
    """Tell whether `path` is on a file system other than the local one."""
    return "://" in path and not path.startswith(("file://", "local://"))


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a local path without `~`, links and dots; URLs as they are."""
    path = os.fspath(path)
    return path if "://" in path else os.path.realpath(os.path.expanduser(path))


def default(loggers: Sequence[Logger], root_dir: str, storage_url: str | None = None) -> str:
    """Return the folder for the checkpoints of a run: below that of its first logger, or below the root folder; at the URL, if there is one."""
    if not loggers:
        return os.path.join(storage_url or root_dir, "checkpoints")
    first = loggers[0]
    version = first.version if isinstance(first.version, str) else f"version_{first.version}"
    return os.path.join(storage_url or first.save_dir or root_dir, str(first.name), version, "checkpoints")


def exists(path: str) -> bool:
    """Tell whether something is called `path`, be it a link to nowhere, or is about to be."""
    if "://" not in path:
        return os.path.lexists(path) or pending.is_pending(path)
    fs, inner = _file_system(path)
    return bool(fs.exists(inner))


def unwritable(folder: str) -> str | None:
    """Return why nothing can be written to a local folder, which may not exist yet; None if something can, or it is elsewhere."""
    if "://" in folder:
        return None
    place = Path(folder)
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        return f"{place} is a file"
    return None if os.access(place, os.W_OK | os.X_OK) else f"{place} is read-only for this user"


def listing(folder: str) -> list[Any]:
    """Return what is in `folder`; nothing if there is no such folder."""
    if "://" not in folder:
        return os.listdir(folder) if os.path.isdir(folder) else []
    fs, inner = _file_system(folder)
    return list(fs.ls(inner)) if fs.isdir(inner) else []


def newest_first(folder: str, pattern: str) -> list[str]:
    """Return the paths in `folder` that match a pattern such as `**/*.ckpt`, those that were written last first."""
    if "://" not in folder:
        found = [str(path) for path in Path(folder).glob(pattern) if path.exists()]
    else:
        fs, inner = _file_system(folder)
        found = [fs.unstrip_protocol(path) for path in fs.glob(f"{inner}/{pattern}")]
    return sorted(found, key=modified, reverse=True)


def remove_unfinished(folder: str) -> None:
    """Delete what processes that were killed while they wrote have left of checkpoints in a local folder."""
    if "://" not in folder and os.path.isdir(folder):
        for path in Path(folder).glob(".*.ckpt.*.tmp"):
            path.unlink(missing_ok=True)


def remove_if_empty(folder: str) -> None:
    """Delete a local folder if there is nothing in it."""
    if os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)


def modified(path: str) -> float:
    """Return when a file was written last, in seconds since 1970."""
    if "://" not in path:
        return os.stat(path).st_mtime
    fs, inner = _file_system(path)
    return float(fs.modified(inner).timestamp())


def remove(path: str) -> None:
    """Delete a file, or the folder that a sharded checkpoint is; nothing happens if it is gone already.

    While a checkpoint is written in the background nothing is deleted until that is whole; likewise for second names.
    """
    pending.when_written(lambda: _remove(path))


def _remove(path: str) -> None:
    if "://" in path:
        fs, inner = _file_system(path)
        if fs.exists(inner):
            fs.rm(inner, recursive=True)
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def give_second_name(path: str, name: str, *, symbolic: bool = False) -> None:
    """Let `name` be the same checkpoint as `path`, in place of what was there: a link where there are such, else a copy.

    Args:
        path: the checkpoint.
        name: path of its second name, on the same file system.
        symbolic: whether the link is to be a relative symbolic one rather than a hard one, which outlives the deletion of `path`.
    """
    pending.when_written(lambda: _give_second_name(path, name, symbolic))


def _give_second_name(path: str, name: str, symbolic: bool) -> None:
    if "://" in path:
        fs, inner = _file_system(path)
        fs.copy(inner, _file_system(name)[1], recursive=True)
        return
    if path == name:
        return
    os.makedirs(os.path.dirname(name), exist_ok=True)
    temporary = f"{name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        if symbolic:
            os.symlink(os.path.relpath(path, os.path.dirname(name)), temporary)
        else:
            os.link(path, temporary)
    except OSError:  # a folder, or a file system without links
        if os.path.isdir(path):
            shutil.copytree(path, temporary)
        else:
            shutil.copyfile(path, temporary)
    if os.path.isdir(name) and not os.path.islink(name):
        shutil.rmtree(name)  # a sharded checkpoint: a rename cannot replace a folder
    os.replace(temporary, name)


def _file_system(path: str) -> tuple[Any, str]:
    import fsspec

    fs, inner = fsspec.core.url_to_fs(path)
    return fs, inner
