"""Batches, whatever is in them.

Move it to a device, tell its size.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch
from raylit.runtime.messages import warn_once


def move_to(batch: object, device: torch.device | str, non_blocking: bool | None = None) -> Batch:
    """Return `batch` with everything in it that has `.to(device)` moved.

    Inside lists, tuples, named tuples, dicts, dataclasses and attrs classes.
    """
    # Copies from pinned memory to a GPU may overlap with compute; other copies may not be read
    # before they are done.
    asynchronous = torch.device(device).type == "cuda" if non_blocking is None else non_blocking
    return _replace(
        batch, lambda item: _moved(item, device, asynchronous) if _can_move(item) else None
    )


def _can_move(item: object) -> bool:
    return isinstance(item, Tensor) or (
        hasattr(item, "to") and callable(item.to) and not isinstance(item, type)
    )


def _moved(item: Batch, device: torch.device | str, non_blocking: bool) -> object:
    if isinstance(item, Tensor):
        return item.to(device, non_blocking=non_blocking)
    moved = item.to(device)
    return item if moved is None else moved  # a user's `to` may work in place


def transfer_to(batch: object, device: torch.device) -> object:
    """Return `batch` on the device of the step that is to come.

    As `move_to`, but to a CUDA device while the step before still computes.
    """
    return _side_stream(device).move(batch) if device.type == "cuda" else move_to(batch, device)


class SideStream:
    """A stream of a CUDA device for copies alone: they do not wait for the work of the steps.

    Copies run while the device computes if the batch lies in pinned memory:
    `DataLoader(pin_memory=True)`.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-streams
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)

    def move(self, batch: object) -> Batch:
        """Return `batch` on the device; computations from now on wait until it is there."""
        compute = torch.cuda.current_stream(self.device)

        def move(item: object) -> object:
            if isinstance(item, Tensor) and item.layout is torch.strided:
                moved = item.to(self.device, non_blocking=True)
                if moved is not item:
                    # Else the next copy would get its memory as soon as Python lets go of it
                    moved.record_stream(compute)
                return moved
            if not _can_move(item):
                return None
            with torch.cuda.stream(compute):  # of the tensors in here one cannot say so
                return _moved(item, self.device, non_blocking=True)

        with torch.cuda.stream(self.stream):
            there = _replace(batch, move)
        compute.wait_stream(self.stream)
        return there


@functools.cache
def _side_stream(device: torch.device) -> SideStream:
    return SideStream(device)


def cast_to(batch: object, dtype: torch.dtype) -> object:
    """Return `batch` with the floating-point tensors in it as `dtype`."""

    def cast(item: object) -> object:
        if not isinstance(item, Tensor):
            return None
        return item.to(dtype) if item.is_floating_point() else item

    return _replace(batch, cast)


def _replace(batch: object, function: Callable[[object], object]) -> Batch:
    """Return `batch` with each item replaced by the result of `function`.

    Where that is None, the parts of the item are replaced instead.
    """
    if isinstance(batch, (str, bytes, int, float, type(None))):
        return batch
    made = function(batch)
    if made is not None:
        return made
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_replace(item, function) for item in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)([_replace(item, function) for item in batch])
    if isinstance(batch, Mapping):
        items = {key: _replace(item, function) for key, item in batch.items()}
        if isinstance(batch, defaultdict):
            return type(batch)(batch.default_factory, items)
        return items if type(batch) is dict else type(batch)(items)  # type: ignore[call-arg]
    if _has_fields(batch):
        changed = {name: _replace(item, function) for name, item in _fields(batch)}
        # Not made anew: what its constructor does with the values would be done to them twice
        replaced = copy.copy(batch)
        params = getattr(batch, "__dataclass_params__", None)
        # That of attrs may convert a value once more, and one that is frozen takes none
        assign = object.__setattr__ if params is None or params.frozen else setattr
        for name, item in changed.items():
            assign(replaced, name, item)
        return replaced
    return batch


def _has_fields(batch: object) -> bool:
    """Tell whether this is an object of a dataclass, or of a class of attrs."""
    # The package attrs need not be here
    return hasattr(type(batch), "__dataclass_fields__") or hasattr(type(batch), "__attrs_attrs__")


def _fields(batch: Batch) -> Iterator[tuple[str, object]]:
    """Give the names and values of the fields that have one: its constructor may leave some."""
    own = dataclasses.fields(batch) if dataclasses.is_dataclass(batch) else batch.__attrs_attrs__
    for field in own:
        if hasattr(batch, field.name):
            yield field.name, getattr(batch, field.name)


def named_tensors(batch: object, name: str = "") -> dict[str, Tensor]:
    """Return the tensors in `batch`, each under the keys, fields and positions that lead to it.

    Args:
        batch: tensors in lists, tuples, dicts, dataclasses and attrs classes.
        name: of the whole.

    Example:
        >>> list(named_tensors({"image": torch.zeros(2), "text": [torch.zeros(2)]}))
        ['image', 'text.0']
    """
    found: dict[str, Tensor] = {}

    def look(item: object, path: tuple[str, ...]) -> None:
        if isinstance(item, Tensor):
            found[".".join(path) or "input"] = item
            return
        for key, part in parts_of(item):
            look(part, (*path, key))

    look(batch, (name,) if name else ())
    return found


def parts_of(batch: object) -> Iterator[tuple[str, object]]:
    """Yield the parts of a batch, each with its key, field or position; none of a tensor."""
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        yield from zip(batch._fields, batch, strict=True)
    elif isinstance(batch, (list, tuple)):
        yield from ((str(index), item) for index, item in enumerate(batch))
    elif isinstance(batch, Mapping):
        yield from ((str(key), item) for key, item in batch.items())
    elif _has_fields(batch):
        yield from _fields(batch)


def with_tensors(batch: object, tensors: Iterable[Tensor]) -> Batch:
    """Return `batch` with the tensors in it replaced, in the order of `named_tensors`."""
    given = iter(tensors)
    return _replace(batch, lambda item: next(given) if isinstance(item, Tensor) else None)


def size_of(batch: object, check: bool = True) -> int:
    """Return how many samples `batch` holds.

    The first dimension of the first tensor in it, depth first; a 0-d tensor counts 1.

    Args:
        batch: tensors in mappings, dataclasses, lists and whatever else can be iterated.
        check: warn if the other tensors have other first dimensions.

    Raises:
        ConfigError: there is no tensor in it.
    """
    first = _first_size(batch)
    if first is None:
        raise ConfigError(
            "The batch size could not be found: the batch holds no tensor. Give it: self.log(name,"
            " value, batch_size=n)."
        )
    if check and any(size != first for size in _sizes(batch)):
        warn_once(
            f"The batch holds tensors of different first dimensions; {first} was taken as the batch"
            " size that weights logged means. If that is wrong, give it: self.log(name, value,"
            " batch_size=n).",
            key="ambiguous batch size",
        )
    return first


def _first_size(batch: object) -> int | None:
    if isinstance(batch, Tensor):
        return batch.size(0) if batch.ndim else 1
    if isinstance(batch, (list, tuple)) and batch and isinstance(batch[0], Tensor):
        return _first_size(batch[0])
    return next(_sizes(batch), None)


def _sizes(batch: object) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield batch.size(0) if batch.ndim else 1
    elif isinstance(batch, (str, bytes)):
        return
    elif isinstance(batch, Mapping):
        for item in batch.values():
            yield from _sizes(item)
    elif isinstance(batch, Iterable):
        for item in batch:
            yield from _sizes(item)
    elif _has_fields(batch):
        for _, item in _fields(batch):
            yield from _sizes(item)
