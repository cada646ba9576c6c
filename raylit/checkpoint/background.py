"""Writing a checkpoint while training goes on.

The state is copied once, and a thread writes the copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch
from torch.utils._pytree import tree_map

from raylit.checkpoint.format import save
from raylit.errors import NotSavedError
from raylit.runtime.messages import warn


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread of its own.

    If a checkpoint cannot be written, a warning says so and training goes on.

    The copy's memory is kept for the next one: new memory costs several times as much as the
    copying.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._kept: list[torch.UntypedStorage] = []

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._thread is not None and self._thread.is_alive()

    def write(
        self,
        checkpoint: dict[str, object],
        path: str,
        then: Callable[[str], None],
        first: Callable[[], None] | None = None,
    ) -> None:
        """Copy `checkpoint` and begin to write the copy; waits first if one is being written.

        Args:
            checkpoint: what `dump` returned; its tensors may change as soon as this returns.
            path: local path or fsspec URL.
            then: called with the path, in the thread, once the file is whole and durable.
            first: called in the thread before the file is written.
        """
        self.wait()
        copied = self._copy(checkpoint)
        self._thread = threading.Thread(
            target=_write, args=(copied, path, then, first), name="raylit-checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Return when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def close(self) -> None:
        """Wait, and give the memory back."""
        self.wait()
        self._kept = []

    def _copy(self, checkpoint: dict[str, object]) -> dict[str, object]:
        """Return a copy in host memory.

        Tensors that share memory, such as tied weights, share it in the copy too.
        """
        copies: dict[tuple[torch.device, int], torch.UntypedStorage] = {}
        kept = iter(self._kept)
        self._kept = []

        def copy(value: object) -> object:
            if not isinstance(value, torch.Tensor):
                return value
            if not _is_plain(value):
                return value.detach().resolve_conj().resolve_neg().to("cpu", copy=True)
            storage = value.untyped_storage()
            key = (storage.device, storage.data_ptr())
            if key not in copies:
                host = next(kept, None)
                if host is None or host.nbytes() != storage.nbytes():
                    host = torch.UntypedStorage(storage.nbytes())
                    host = host.pin_memory() if storage.device.type == "cuda" else host
                if storage.device.type == "cpu":
                    # by numpy, in this thread: torch's threads wait for each other, which is long
                    # where others use the cores
                    np.copyto(_as_bytes(host).numpy(), _as_bytes(storage).numpy())
                else:
                    _as_bytes(host).copy_(_as_bytes(storage), non_blocking=True)
                copies[key] = host
                self._kept.append(host)
            return torch.empty(0, dtype=value.dtype).set_(
                copies[key], value.storage_offset(), value.size(), value.stride()
            )

        copied: dict[str, object] = tree_map(copy, checkpoint)
        for device in {device for device, _ in copies if device.type == "cuda"}:
            torch.cuda.synchronize(device)
        return copied


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is bytes, sizes and strides, and nothing else."""
    return (
        tensor.layout == torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
        and not (tensor.is_conj() or tensor.is_neg())
    )


def _as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _write(
    checkpoint: dict[str, object],
    path: str,
    then: Callable[[str], None],
    first: Callable[[], None] | None,
) -> None:
    if first is not None:
        first()
    try:
        save(checkpoint, path)
    except NotSavedError as error:
        warn(f"{error} Training goes on.", RuntimeWarning)
    else:
        then(path)
