"""Worker processes of a loader end together with the process that reads it.

A forked worker holds all connections of the process that it was forked from. When that one is a
rank and is killed, the others of its group learn of it once the last holder of its connections has
ended. PyTorch's workers look after their parent every 5 s; and one whose parent is killed before it
begins to look never ends, since it takes for its parent whoever has inherited it. The other ranks
then wait in their next collective until that times out.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator

from torch.utils.data import DataLoader

from raylit.runtime.aliases import Batch, Loaders
from raylit.runtime.processes import end_with


class EndingWithReader:
    """The `worker_init_fn` of a loader whose workers end when the process that reads it dies."""

    def __init__(self, own: Callable[[int], None] | None) -> None:
        self.own = own
        self.reader = os.getpid()

    def __call__(self, worker_id: int) -> None:
        """Prepare the worker process that runs this."""
        if not end_with(self.reader, signal.SIGKILL):  # no signal: the handlers are the reader's
            os._exit(1)
        if self.own is not None:
            self.own(worker_id)


def begin_reading(loader: Loaders) -> Iterator[Batch]:
    """Begin to read a loader, which the calling thread goes on to read."""
    if not isinstance(loader, DataLoader) or not _is_forking(loader):
        return iter(loader)
    own = loader.worker_init_fn
    loader.worker_init_fn = EndingWithReader(own)
    try:
        return iter(loader)
    finally:
        loader.worker_init_fn = own


def _is_forking(loader: DataLoader[object]) -> bool:
    """Tell whether reading starts processes that inherit all that this one holds."""
    context = loader.multiprocessing_context or multiprocessing
    return loader.num_workers > 0 and context.get_start_method() == "fork"
