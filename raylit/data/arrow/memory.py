"""Reading data that lies in memory, or is mapped into it: any row at any time."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from raylit.data.arrow.columns import Rows
from raylit.data.arrow.order import Share

CGROUP_LIMIT = "/sys/fs/cgroup/memory.max"
CGROUP_USED = "/sys/fs/cgroup/memory.current"


class Store(Protocol):
    """Rows that can be had by number."""

    def __len__(self) -> int:
        """Return how many there are."""

    def take(self, places: Tensor) -> Rows:
        """Return the rows of these numbers, in this order."""

    def slice(self, start: int, num: int) -> Rows:
        """Return `num` rows from `start` on."""


class StoreReader:
    """Reads this rank's rows of an order from a store.

    Args:
        store: where the rows are.
        order: the number of the row at each position; None: that of the position.
        share: this rank's positions.
        chunk_rows: how many are gathered at a time.
    """

    def __init__(self, store: Store, order: Tensor | None, share: Share, chunk_rows: int) -> None:
        self.store = store
        self.order = order
        self.share = share
        self.chunk_rows = chunk_rows

    def chunks(self, start: int, stop: int) -> Iterator[Rows]:
        """Give this rank's rows from number `start` to `stop`, some at a time."""
        # Positions that follow each other need no index, and in the order of the data no copy
        is_run = self.share.size == 1 or self.share.mode == "predict"
        for first in range(start, stop, self.chunk_rows):
            last = min(stop, first + self.chunk_rows)
            if not is_run:
                positions = self.share.positions(first, last)
                yield self.store.take(positions if self.order is None else self.order[positions])
                continue
            begin = int(self.share.positions(first, first + 1))
            if self.order is None:
                yield self.store.slice(begin, last - first)
            else:
                yield self.store.take(self.order.narrow(0, begin, last - first))


def free_bytes() -> int:
    """Return how much memory this process may take before anything is swapped out or ended."""
    found = [_available()]
    try:
        with open(CGROUP_LIMIT) as limit, open(CGROUP_USED) as used:
            text = limit.read().strip()
            if text != "max":
                found.append(int(text) - int(used.read()))
    except (OSError, ValueError):  # no container, or of another kind
        found.append(found[0])
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        found.append(soft)
    return max(0, min(found))


def _available() -> int:
    try:
        with open("/proc/meminfo") as file:
            return next(
                int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable")
            )
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def tensor(numbers: list[int]) -> Tensor:
    """Return row numbers as a tensor."""
    return torch.tensor(numbers, dtype=torch.int64)
