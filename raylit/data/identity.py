"""The identity of data, to tell whether two runs had the same: name, digest, rows, columns.

No sample is read, for that may draw random numbers or take long. The digest covers the attributes
of a dataset: tensors, arrays, numbers and texts, and of large ones pieces of 64 KiB from all over.
An object that has a `digest` of its own counts by that.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Mapping, Sized
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from raylit.runtime.aliases import Batch

from raylit.core.logger import DataInput
from raylit.runtime.batch import named_tensors

PIECE_BYTES = 1 << 16
NUM_PIECES = 64
MOST_DEEP = 4
MOST_ITEMS = 10_000


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None:
        """Add bytes."""


def identify(loaders: list[object], context: str, batch: Batch) -> DataInput:
    """Describe the data of a stage.

    Args:
        loaders: as they were given.
        context: of which stage: `train`, `validation` or `test`.
        batch: one of its batches.
    """
    datasets = [getattr(loader, "dataset", loader) for loader in loaders]
    found = hashlib.blake2b(digest_size=16)
    for dataset in datasets:
        _add(found, dataset, 0)
    columns = {
        name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape[1:]))
        for name, tensor in named_tensors(batch).items()
    }
    return DataInput(
        context=context,
        name=", ".join(dict.fromkeys(map(_name, datasets))),
        digest=found.hexdigest(),
        num_rows=_num_rows(datasets),
        columns=columns,
    )


def _name(dataset: object) -> str:
    own = getattr(dataset, "name", None)
    if isinstance(own, str):
        return own
    inner = getattr(dataset, "dataset", None)  # of a Subset
    return (
        type(dataset).__name__ if inner is None else f"{type(dataset).__name__} of {_name(inner)}"
    )


def _num_rows(datasets: list[object]) -> int | None:
    sized = [dataset for dataset in datasets if isinstance(dataset, Sized)]
    try:
        return sum(map(len, sized)) if len(sized) == len(datasets) else None
    except TypeError:  # a class that has a length only sometimes
        return None


def _add(found: _Hash, value: object, depth: int) -> None:
    """Add the contents of a value to a hash."""
    if isinstance(value, Tensor):
        if value.layout is torch.strided and value.device.type == "cpu":
            found.update(f"{value.dtype}{tuple(value.shape)}".encode())
            _add_bytes(found, value.detach().contiguous().reshape(-1).view(torch.uint8).numpy())
        return
    if isinstance(value, np.ndarray) and value.dtype != object:
        found.update(f"{value.dtype}{value.shape}".encode())
        _add_bytes(found, np.ascontiguousarray(value).reshape(-1).view(np.uint8))
        return
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, os.PathLike)):
        found.update(repr(value).encode())
        return
    digest = getattr(value, "digest", None)
    if isinstance(digest, str):
        found.update(digest.encode())
        return
    if isinstance(value, (list, tuple, range, set, frozenset, Mapping)):
        _add_items(found, value, depth)
        return
    found.update(type(value).__qualname__.encode())
    if depth < MOST_DEEP and not callable(value) and hasattr(value, "__dict__"):
        for name, part in sorted(vars(value).items()):
            found.update(name.encode())
            _add(found, part, depth + 1)


def _add_items(found: _Hash, value: Collection[object], depth: int) -> None:
    items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
    pairs = items.items() if isinstance(items, Mapping) else enumerate(items)
    found.update(f"{type(value).__name__}{len(items)}".encode())
    every = max(1, len(items) // MOST_ITEMS)
    for number, (key, part) in enumerate(pairs):
        if number % every == 0 and depth < MOST_DEEP:
            found.update(repr(key).encode())
            _add(found, part, depth + 1)


def _add_bytes(found: _Hash, data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    if data.size <= PIECE_BYTES * NUM_PIECES:
        found.update(data.tobytes())
        return
    last = data.size - PIECE_BYTES
    for piece in range(NUM_PIECES):
        start = last * piece // (NUM_PIECES - 1)
        found.update(data[start : start + PIECE_BYTES].tobytes())
