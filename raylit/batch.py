"""What can be done with a batch without knowing what is in it: move it to a device, tell its size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from raylit.errors import ConfigError
from raylit.messages import warn_once


def move_to(batch: Any, device: torch.device | str, non_blocking: bool | None = None) -> Any:
    """Return `batch` with everything that has `.to(device)` moved, inside lists, tuples, named tuples, dicts and dataclasses."""
    if isinstance(batch, Tensor):
        # Copies from pinned memory to a GPU may overlap with compute; other copies may not be read before they are done.
        asynchronous = torch.device(device).type == "cuda" if non_blocking is None else non_blocking
        return batch.to(device, non_blocking=asynchronous)
    if isinstance(batch, (str, bytes, int, float, type(None))):
        return batch
    if hasattr(batch, "to") and callable(batch.to) and not isinstance(batch, type):
        moved = batch.to(device)
        return batch if moved is None else moved  # a user's `to` may work in place
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(move_to(item, device, non_blocking) for item in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)([move_to(item, device, non_blocking) for item in batch])
    if isinstance(batch, Mapping):
        moved_items = {key: move_to(item, device, non_blocking) for key, item in batch.items()}
        return moved_items if type(batch) is dict else type(batch)(moved_items)  # type: ignore[call-arg]
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = {f.name: move_to(getattr(batch, f.name), device, non_blocking) for f in dataclasses.fields(batch) if f.init}
        return dataclasses.replace(batch, **changed)
    return batch


def size_of(batch: Any) -> int:
    """Return how many samples `batch` holds: the first dimension of the first tensor in it, depth first; a 0-d tensor counts 1.

    Raises:
        ConfigError: there is no tensor and no string in it.
    """
    sizes = _sizes(batch)
    first = next(sizes, None)
    if first is None:
        raise ConfigError("The batch size could not be found: the batch holds no tensor. Give it: self.log(name, value, batch_size=n).")
    if any(size != first for size in sizes):
        warn_once(
            f"The batch holds tensors of different first dimensions; {first} was taken as the batch size that weights logged means."
            " If that is wrong, give it: self.log(name, value, batch_size=n).",
            key="ambiguous batch size",
        )
    return first


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield batch.size(0) if batch.ndim else 1
    elif isinstance(batch, str):
        yield len(batch)
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from _sizes(item)
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from _sizes(item)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from _sizes(getattr(batch, field.name))
