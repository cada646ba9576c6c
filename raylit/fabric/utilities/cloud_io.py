"""Lightning's place for files that may be at a URL."""

from __future__ import annotations

import os
from typing import IO, TYPE_CHECKING, Any

import fsspec
import torch
from fsspec.core import url_to_fs

from raylit.runtime import storage

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from torch.serialization import MAP_LOCATION

    from raylit.runtime.aliases import CheckpointDict

__all__ = ["get_filesystem"]


def get_filesystem(path: str | os.PathLike[str], **kwargs: object) -> AbstractFileSystem:
    """Return the fsspec file system of a path or URL."""
    filesystem, _ = url_to_fs(str(path), **kwargs)
    return filesystem


def _load(
    path_or_url: str | os.PathLike[str] | IO[bytes],
    map_location: MAP_LOCATION = None,
    weights_only: bool | None = None,
) -> Any:
    """Return the object that `torch.save` wrote; code in it runs only with `weights_only=False`."""
    safely = weights_only is not False
    if not isinstance(path_or_url, (str, os.PathLike)):
        return torch.load(path_or_url, map_location=map_location, weights_only=safely)
    with fsspec.open(os.fspath(path_or_url), "rb") as file:
        return torch.load(file, map_location=map_location, weights_only=safely)


def _atomic_save(checkpoint: CheckpointDict, filepath: str | os.PathLike[str]) -> None:
    """Write a dict to a path or URL, whole or not at all."""
    from raylit.checkpoint import format

    format.save(checkpoint, filepath)


def _is_local_file_protocol(path: str | os.PathLike[str]) -> bool:
    return not storage.is_url(os.fspath(path))


def _is_dir(
    filesystem: AbstractFileSystem, path: str | os.PathLike[str], strict: bool = False
) -> bool:
    return bool(filesystem.isdir(os.fspath(path)))
