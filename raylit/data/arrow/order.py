"""Which row comes when, by (seed, epoch, position), and which positions are a rank's.

Rows are counted within the rows that are read, which may be a part of the data. Three orders: as
they are; all rows in one permutation; and for data that does not fit into memory, windows: the
pieces are permuted, and the rows of some pieces at a time are mixed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def mixed(*numbers: int) -> int:
    """Return 63 bits that look random."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(num: int, *key: int) -> Tensor:
    """Return the numbers below `num` in an order that only the key decides."""
    return torch.randperm(num, generator=torch.Generator().manual_seed(mixed(*key)))


class Keyed:
    """A permutation of the numbers below `num` that is nowhere stored.

    A Feistel network over the next power of 4, walked until it comes below `num`.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002.
    """

    ROUNDS = 4

    def __init__(self, num: int, *key: int) -> None:
        self.num = num
        self._bits = max(1, (max(num - 1, 1).bit_length() + 1) // 2)
        self._mask = np.uint64((1 << self._bits) - 1)
        self._keys = [np.uint64(mixed(*key, number)) for number in range(self.ROUNDS)]

    def __call__(
        self, numbers: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return the number to which the permutation moves each of these."""
        found = self._once(numbers.astype(np.uint64))
        outside = np.flatnonzero(found >= self.num)
        while len(outside):
            found[outside] = self._once(found[outside])
            outside = outside[found[outside] >= self.num]
        return found.astype(np.int64)

    def _once(
        self, numbers: np.ndarray[tuple[int], np.dtype[np.uint64]]
    ) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        bits, mask = np.uint64(self._bits), self._mask
        left, right = numbers >> bits, numbers & mask
        for key in self._keys:
            # the finalizer of MurmurHash3, as a round function
            hashed = right ^ key
            hashed = (hashed ^ (hashed >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
            hashed = (hashed ^ (hashed >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
            left, right = right, left ^ ((hashed ^ (hashed >> np.uint64(33))) & mask)
        return (left << bits) | right


@dataclass(frozen=True)
class Windows:
    """The order of one epoch in windows, each of some whole pieces.

    Attributes:
        starts: the position at which each window begins, and the number of all rows.
        pieces: which pieces are in each, in order.
        key: of the order within them; empty: as they are.
    """

    starts: tuple[int, ...]
    pieces: tuple[tuple[int, ...], ...]
    key: tuple[int, ...]

    def order(self, window: int) -> Tensor | None:
        """Return for each position within a window the row of its pieces; None: the same."""
        if not self.key:
            return None
        return permutation(self.starts[window + 1] - self.starts[window], *self.key, window)

    def find(self, position: int) -> int:
        """Return the window in which a position lies."""
        return int(np.searchsorted(np.asarray(self.starts), position, side="right")) - 1


def windows(num_rows: Sequence[int], limit: int, key: tuple[int, ...]) -> Windows:
    """Return the windows of an epoch.

    Args:
        num_rows: of each piece.
        limit: rows of a window at most; a single piece may have more.
        key: seed and epoch; empty: in the order of the data.
    """
    # -1: the order within each window is drawn from the same key and its number
    order = permutation(len(num_rows), *key, -1).tolist() if key else range(len(num_rows))
    starts, pieces = [0], [[]]  # type: tuple[list[int], list[list[int]]]
    total = in_window = 0
    for piece in order:
        rows = num_rows[piece]
        if not rows:
            continue
        if pieces[-1] and in_window + rows > limit:
            starts.append(total)
            pieces.append([])
            in_window = 0
        pieces[-1].append(piece)
        in_window += rows
        total += rows
    return Windows((*starts, total), tuple(tuple(one) for one in pieces), key)


@functools.lru_cache(maxsize=2)  # an epoch is begun several times where a fit goes on
def all_positions(num_rows: tuple[int, ...], limit: int, key: tuple[int, ...]) -> Tensor:
    """Return the row at each position of an order in windows, for data that is in memory."""
    plan = windows(num_rows, limit, key)
    firsts = np.append(0, np.cumsum(num_rows))
    found = torch.empty(int(firsts[-1]), dtype=torch.int64)
    for number, pieces in enumerate(plan.pieces):
        start, stop = plan.starts[number], plan.starts[number + 1]
        rows = torch.cat([torch.arange(int(firsts[one]), int(firsts[one + 1])) for one in pieces])
        order = plan.order(number)
        found[start:stop] = rows if order is None else rows[order]
    return found


@dataclass(frozen=True)
class Share:
    """The positions that are one rank's.

    Attributes:
        total: of the order.
        rank: this one.
        size: how many share.
        mode: `train`: all have equally many, the first come twice if need be; `drop`: the last do
            not come; `evaluate`: each once; `predict`: each rank has one piece of the order.
        taken: positions that were read before, by whomever.
    """

    total: int
    rank: int = 0
    size: int = 1
    mode: str = "evaluate"
    taken: int = 0

    def __len__(self) -> int:
        left = max(0, self.total - self.taken)
        if self.mode == "predict":
            return left * (self.rank + 1) // self.size - left * self.rank // self.size
        if self.mode == "drop":
            return left // self.size
        if self.mode == "train":
            return -(-left // self.size)
        return len(range(self.rank, left, self.size))

    @property
    def wrap(self) -> int:
        """The number of the first row of this rank that comes a second time.

        Its length if none does.
        """
        if self.mode == "predict" or self.mode == "evaluate":
            return len(self)
        return (self.total - self.taken - 1 - self.rank) // self.size + 1

    def positions(self, start: int, stop: int) -> Tensor:
        """Return the positions of this rank's rows from number `start` to `stop`."""
        left = self.total - self.taken
        numbers = torch.arange(start, stop)
        if self.mode == "predict":
            return self.taken + left * self.rank // self.size + numbers
        return self.taken + (self.rank + self.size * numbers) % left
