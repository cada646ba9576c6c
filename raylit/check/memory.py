"""Measures the memory of tensors while a step runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from raylit.runtime.aliases import Arguments


class Memory:
    """Measures the bytes of tensors, from `begin` to `end`.

    On a GPU its allocator counts. On the CPU, whose allocator does not, each result of an operation
    counts until it is gone; tensors that a step makes in other threads are not seen there.

    Args:
        device: where the step runs.
        held: tensors that are there already.
    """

    def __init__(self, device: torch.device, held: Iterable[Tensor]) -> None:
        held = [one for one in held if one.layout is torch.strided]
        self._device = device if device.type == "cuda" else None
        self._live = None if self._device else _LiveTensors(held)
        # what other models hold on the GPU is no part of this one's
        self._before = torch.cuda.memory_allocated(device) if self._device else 0
        held_bytes = sum({_id(one): one.untyped_storage().nbytes() for one in held}.values())
        self._others = max(self._before - held_bytes, 0)
        self._is_on = False

    def begin(self, batch: Iterable[Tensor]) -> None:
        """A step begins with the tensors of a batch."""
        self._is_on = True
        if self._live is not None:
            for tensor in batch:
                self._live.count(tensor)
            self._live.peak_bytes = self._live.now_bytes
            self._live.__enter__()  # type: ignore[no-untyped-call]
        else:
            torch.cuda.reset_peak_memory_stats(self._device)

    def end(self) -> None:
        """It has ended, well or not."""
        if self._is_on and self._live is not None:
            self._live.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._is_on = False

    @property
    def now_bytes(self) -> int:
        """The memory held now."""
        if self._live is not None:
            return self._live.now_bytes
        return torch.cuda.memory_allocated(self._device) - self._others

    @property
    def peak_bytes(self) -> int:
        """The most that was held at once since the last `begin`."""
        if self._live is not None:
            return self._live.peak_bytes
        return torch.cuda.max_memory_allocated(self._device) - self._others


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that are there, for a `with` block."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now_bytes = self.peak_bytes = 0
        self._known: set[int] = set()
        for tensor in held:
            self.count(tensor)

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Arguments | None = None,
    ) -> object:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return made

    def count(self, tensor: Tensor) -> None:
        """Count a tensor until it is gone."""
        if tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        key = _id(tensor)
        if key in self._known or not key:
            return
        self._known.add(key)
        num_bytes = storage.nbytes()
        self.now_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)
        weakref.finalize(storage, self._gone, key, num_bytes).atexit = False

    def _gone(self, key: int, num_bytes: int) -> None:
        self._known.discard(key)
        self.now_bytes -= num_bytes


def _id(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
