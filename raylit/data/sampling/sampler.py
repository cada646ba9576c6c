"""Sharding: which samples of a data set belong to which rank.

The order of all samples is a function of seed and epoch; rank r of n takes positions r, r + n, r +
2n, ... of it, so batch i of all ranks together is batch i of one process with n times the batch
size. In training every rank gets equally many samples: the order is continued from its start until
it divides (as torch's DistributedSampler does), or with `drop` its end is left out. In evaluation
nothing is repeated: ranks may differ by one sample. For prediction each rank takes one consecutive
piece, so that the ranks' results, one after the other, are in the order of the data.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sized
from functools import partial
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)
from torch.utils.data.distributed import DistributedSampler

from raylit.data.sampling.sources import Index, Sources, Stream, UserSampler, piece_of
from raylit.runtime import rng
from raylit.runtime.aliases import Loaders
from raylit.runtime.messages import warn_once

if TYPE_CHECKING:
    from raylit.parallel import World


class ShardedSampler(Sampler[Index]):
    """One rank's share of the order that another sampler gives.

    Args:
        sampler: gives indices, or whole batches of indices if it is a batch sampler.
        rank: this rank.
        size: number of ranks.
        mode: `train`, `drop`, `evaluate` or `predict`; see the module's text.
        seed: of random orders, together with the epoch.

    Attributes:
        salts: what stands for how the user seeded the sampler's own generators, if it has any; to
            be the same on all ranks.
    """

    def __init__(
        self, sampler: UserSampler, rank: int, size: int, mode: str, seed: int | None = None
    ) -> None:
        self.sampler = sampler
        self.rank = rank
        self.size = size
        self.mode = mode
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.epoch = 0
        self._sources = Sources(sampler)
        self.salts = self._sources.salts()

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch; the loop calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Index]:
        number = order_number(self.seed, self.epoch)
        order = seeded_order(self.sampler, self._sources, self.salts, number)
        if self.mode == "predict":
            length = len(self.sampler)
            start, stop = (length * r // self.size for r in (self.rank, self.rank + 1))
            return islice(order, start, stop)
        return deal(order, self.rank, self.size, self.mode)

    def __len__(self) -> int:
        number = len(self.sampler)
        if self.mode == "predict":
            return number * (self.rank + 1) // self.size - number * self.rank // self.size
        if self.mode == "drop":
            return number // self.size
        if self.mode == "train":
            return math.ceil(number / self.size)
        return len(range(self.rank, number, self.size))


def order_number(seed: int, epoch: int, turn: int = 0) -> int:
    """Return the seed for the order of an epoch; `turn`: how often it was begun before."""
    # The sum is that of torch's DistributedSampler, whose orders these are
    return rng.mix(seed + epoch, turn) if turn else seed + epoch


def seeded_order(
    sampler: UserSampler, sources: Sources, salts: list[int], number: int
) -> list[Index] | Iterator[Index]:
    """Return the indices of all ranks, the same on each: whatever they draw from is seeded.

    Args:
        sampler: gives them, perhaps without end.
        sources: what it draws from; left as they are.
        salts: of its own generators.
        number: to seed them with.

    Returns:
        A list, or what draws them as they are wanted if there are more than the sampler says.
    """
    if (
        type(sampler) is RandomSampler
        and not sampler.replacement
        and sampler.num_samples == len(sampler.data_source)
    ):
        generator = torch.Generator().manual_seed(number)  # as DistributedSampler does
        return torch.randperm(len(sampler.data_source), generator=generator).tolist()
    piece = piece_of(sampler)
    stream = Stream(sampler, sources, piece, partial(sources.seed, number, salts))
    first = list(islice(stream, piece))
    return first if len(first) < piece else chain(first, stream)


def deal(order: list[Index] | Iterator[Index], rank: int, size: int, mode: str) -> Iterator[Index]:
    """Return one rank's share of an order.

    In training as many for each rank, so that the first come twice or, with `drop`, the last do not
    come.
    """
    if size == 1:
        return iter(order)
    if not isinstance(order, list):
        return (
            islice(order, rank, None, size)
            if mode == "evaluate"
            else _dealt(order, rank, size, mode)
        )
    if mode == "drop":
        order = order[: len(order) // size * size]
    elif mode == "train" and order:
        missing = -len(order) % size
        order = order + (order * math.ceil(missing / len(order)))[:missing]
    return iter(order[rank::size])


def _dealt(order: Iterator[object], rank: int, size: int, mode: str) -> Iterator[Index]:
    """Deal out an order as it is drawn."""
    head = round_ = list(islice(order, size))
    while len(round_) == size:
        yield round_[rank]
        round_ = list(islice(order, size))
    if round_ and mode == "train":
        yield [*round_, *islice(cycle(head), size)][rank]


def shard(loader: Loaders, world: World, mode: str, alone: bool = False) -> object:
    """Return a loader that reads this rank's share of the samples of `loader`.

    The user's loader is copied as it is, never made anew through its constructor, so subclasses and
    custom collate functions keep working; only the sampler that draws the indices is exchanged.
    Left as they are: loaders other than torch's, iterable data sets, and loaders that already have
    a distributed sampler; and all loaders of a rank that is alone, unless it is to read in the
    order of several ranks (`alone`).
    """
    if not isinstance(loader, DataLoader) or (
        world.size == 1 and (not alone or isinstance(loader.dataset, IterableDataset))
    ):
        return loader
    if isinstance(loader.dataset, IterableDataset):
        warn_once(
            f"The {mode} data set {type(loader.dataset).__name__} is an IterableDataset, which"
            f" raylit cannot shard: each of the {world.size} ranks reads all that it yields. Let it"
            " skip by torch.distributed.get_rank() itself.",
            key=f"iterable {mode}",
        )
        return loader
    sampler: object = loader.sampler
    batch_sampler: object = loader.batch_sampler
    if any(
        isinstance(one, (DistributedSampler, ShardedSampler))
        for one in (sampler, batch_sampler, getattr(batch_sampler, "sampler", None))
    ):
        return loader
    if type(batch_sampler) is BatchSampler:
        sampler = batch_sampler.sampler  # the loader's own does not count if it was given batches
    if batch_sampler is None or type(batch_sampler) is BatchSampler:
        return reading(loader, ShardedSampler(sampler, world.rank, world.size, mode))
    sharded = copied(loader)
    sharded.__dict__["batch_sampler"] = ShardedSampler(batch_sampler, world.rank, world.size, mode)
    return sharded


def without_shuffle(loader: Loaders) -> object:
    """Return a loader that reads in order, for `overfit_batches`."""
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or isinstance(loader.sampler, SequentialSampler)
    ):
        return loader
    assert isinstance(loader.dataset, Sized)
    return reading(loader, SequentialSampler(loader.dataset))


def with_short_batches(loader: Loaders) -> object:
    """Return a loader that does not drop a last batch that is short.

    There is to be a prediction for every sample.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    if type(batch_sampler) is not BatchSampler or not batch_sampler.drop_last:
        return loader
    return reading(loader, batch_sampler.sampler, drop_last=False)


def copied(loader: DataLoader[object]) -> DataLoader[object]:
    """Return a copy of a loader, to be given another sampler or data set.

    It is without the iterator that a loader with persistent workers keeps once it was read: torch
    would go on with that, which draws from the loader's own sampler.
    """
    changed = copy.copy(loader)
    changed.__dict__["_iterator"] = None
    return changed


def reading(
    loader: DataLoader[object], sampler: UserSampler, drop_last: bool | None = None
) -> DataLoader[object]:
    """Return a copy of `loader` that draws its indices from another sampler.

    `drop_last` is kept if None.
    """
    changed = copied(loader)
    # DataLoader forbids to set these attributes after construction; going through __dict__ spares
    # it a second construction
    changed.__dict__["sampler"] = sampler
    batch_sampler: UserSampler = loader.batch_sampler
    if batch_sampler is not None:
        drop_last = batch_sampler.drop_last if drop_last is None else drop_last
        changed.__dict__["batch_sampler"] = BatchSampler(
            sampler, batch_sampler.batch_size, drop_last
        )
    return changed


def tell_epoch(sampler: object, epoch: int) -> None:
    """Tell a sampler, and those that it is made of, which epoch begins."""
    while sampler is not None:
        own = getattr(sampler, "set_epoch", None)
        if callable(own):
            own(epoch)
        sampler = vars(sampler).get("sampler") if hasattr(sampler, "__dict__") else None
