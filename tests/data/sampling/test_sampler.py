"""Every rank reads its share.

In evaluation each sample once, in training equally many, in prediction in the order of the data.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from raylit.data.sampling.plan import set_epoch
from raylit.data.sampling.sampler import (
    ShardedSampler,
    shard,
    with_short_batches,
    without_shuffle,
)
from raylit.parallel import World


def rank_of(rank: int, size: int) -> World:
    """The place of a rank, of which sharding reads the numbers only."""
    world = World(torch.device("cpu"))
    world.rank, world.size = rank, size
    return world


def shares(sampler: Any, size: int, mode: str, epoch: int = 0, seed: int = 3) -> list[list[int]]:
    found = []
    for rank in range(size):
        sharded = ShardedSampler(sampler, rank, size, mode, seed)
        sharded.set_epoch(epoch)
        indices = list(sharded)
        assert len(indices) == len(sharded)
        found.append(indices)
    return found


@given(number=st.integers(0, 60), size=st.integers(1, 9), shuffle=st.booleans())
def test_evaluation_reads_each_sample_once(number: int, size: int, shuffle: bool) -> None:
    data = range(number)
    found = shares(
        RandomSampler(data) if shuffle and number else SequentialSampler(data), size, "evaluate"
    )
    assert sorted(index for share in found for index in share) == list(data)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@given(number=st.integers(1, 60), size=st.integers(1, 9), shuffle=st.booleans())
def test_training_gives_every_rank_equally_many_and_leaves_none_out(
    number: int, size: int, shuffle: bool
) -> None:
    found = shares(
        RandomSampler(range(number)) if shuffle else SequentialSampler(range(number)), size, "train"
    )
    assert {len(share) for share in found} == {-(-number // size)}
    assert {index for share in found for index in share} == set(range(number))


@given(number=st.integers(0, 60), size=st.integers(1, 9))
def test_prediction_reads_consecutive_pieces(number: int, size: int) -> None:
    found = shares(SequentialSampler(range(number)), size, "predict")
    assert [index for share in found for index in share] == list(range(number))


@given(number=st.integers(1, 12).map(lambda n: n * 6), shuffle=st.booleans())
def test_batch_of_all_ranks_is_the_batch_of_one_process(number: int, shuffle: bool) -> None:
    """For any world size, the samples come in the same order.

    2 ranks with 3 each are 3 ranks with 2 each.
    """

    def batches(size: int) -> list[set[int]]:
        found = shares(
            RandomSampler(range(number)) if shuffle else SequentialSampler(range(number)),
            size,
            "train",
        )
        each = 6 // size
        return [
            {index for share in found for index in share[at : at + each]}
            for at in range(0, number // size, each)
        ]

    assert batches(1) == batches(2) == batches(3) == batches(6)


def test_order_is_that_of_seed_and_epoch() -> None:
    sampler = RandomSampler(range(50))
    state = torch.get_rng_state()
    first, again = shares(sampler, 2, "train", epoch=4), shares(sampler, 2, "train", epoch=4)
    assert first == again
    assert (
        shares(sampler, 2, "train", epoch=5)
        != first
        != shares(sampler, 2, "train", epoch=4, seed=8)
    )
    weighted = WeightedRandomSampler([1.0] * 20, 20)
    assert (
        shares(weighted, 2, "train", epoch=1)
        == shares(weighted, 2, "train", epoch=1)
        != shares(weighted, 2, "train", epoch=2)
    )
    assert torch.equal(torch.get_rng_state(), state), (
        "nothing is drawn from the user's random numbers"
    )


class OwnLoader(DataLoader[Any]):
    """Its constructor wants other arguments than DataLoader's."""

    def __init__(self, what: str) -> None:
        super().__init__(
            range(10), batch_size=2, shuffle=True, collate_fn=lambda items: (what, items)
        )  # type: ignore[arg-type]
        self.what = what


class Halves:
    """A batch sampler of the user's: two batches of a half each."""

    def __iter__(self) -> Any:
        return iter([[0, 1, 2], [3, 4, 5]])

    def __len__(self) -> int:
        return 2


def read(loader: Any, size: int = 2, mode: str = "evaluate") -> list[list[Any]]:
    return [list(shard(loader, rank_of(rank, size), mode)) for rank in range(size)]


def test_loaders_of_users_are_copied_and_not_made_anew() -> None:
    loader = OwnLoader("mine")
    sharded = shard(loader, rank_of(1, 2), "train")
    assert (type(sharded), sharded.what, sharded.collate_fn) == (
        OwnLoader,
        "mine",
        loader.collate_fn,
    )
    assert sharded is not loader
    assert isinstance(loader.sampler, RandomSampler), "the user's own is left as it was"
    assert sorted(
        item
        for batches in read(loader)
        for what, items in batches
        for item in items
        if what == "mine"
    ) == list(range(10))


def test_batches_of_a_users_batch_sampler_are_shared_whole() -> None:
    loader = DataLoader(range(6), batch_sampler=Halves(), collate_fn=list)  # type: ignore[arg-type]
    assert read(loader) == [[[0, 1, 2]], [[3, 4, 5]]]


def test_batch_size_and_drop_last_are_kept() -> None:
    loader: Any = DataLoader(range(10), batch_size=2, drop_last=True, collate_fn=list)  # type: ignore[arg-type]
    assert read(loader) == [[[0, 2], [4, 6]], [[1, 3], [5, 7]]]
    unbatched: Any = DataLoader(range(4), batch_size=None)  # type: ignore[arg-type]
    assert read(unbatched) == [[0, 2], [1, 3]]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


def test_what_is_left_as_it_is() -> None:
    world = rank_of(0, 2)
    own = DataLoader(range(4), sampler=DistributedSampler(range(4), 2, 0))  # type: ignore[arg-type]
    assert shard(own, world, "train") is own
    assert shard([1, 2], world, "train") == [1, 2]
    alone = rank_of(0, 1)
    plain = DataLoader(range(4))  # type: ignore[arg-type]
    assert shard(plain, alone, "train") is plain
    stream = DataLoader(Stream())
    with pytest.warns(UserWarning, match="Stream is an IterableDataset, which raylit cannot shard"):
        assert shard(stream, world, "evaluate") is stream


def test_set_epoch_reaches_every_sampler() -> None:
    sharded = shard(DataLoader(range(20), shuffle=True, collate_fn=list), rank_of(0, 2), "train")  # type: ignore[arg-type]
    set_epoch(sharded, 0)
    first = list(sharded)
    set_epoch(sharded, 1)
    assert list(sharded) != first
    set_epoch(sharded, 0)
    assert list(sharded) == first
    distributed: DistributedSampler[Any] = DistributedSampler(range(8), 2, 0)  # type: ignore[arg-type]
    set_epoch(DataLoader(range(8), sampler=distributed), 7)  # type: ignore[arg-type]
    assert distributed.epoch == 7


def test_without_shuffle_reads_in_order() -> None:
    loader: Any = DataLoader(range(6), batch_size=4, shuffle=True, collate_fn=list)  # type: ignore[arg-type]
    assert list(without_shuffle(loader)) == [[0, 1, 2, 3], [4, 5]]
    assert isinstance(loader.batch_sampler, BatchSampler) and isinstance(
        loader.sampler, RandomSampler
    )
    ordered: Any = DataLoader(range(6))  # type: ignore[arg-type]
    assert without_shuffle(ordered) is ordered


def test_a_loader_that_was_read_gives_its_workers_to_no_copy() -> None:
    """With persistent workers torch goes on with the iterator of before, and its sampler."""
    loader: Any = DataLoader(
        range(5),  # type: ignore[arg-type]
        batch_size=2,
        shuffle=True,
        drop_last=True,
        num_workers=1,
        persistent_workers=True,
        collate_fn=list,
    )
    next(iter(loader))
    assert list(without_shuffle(loader)) == [[0, 1], [2, 3]]
    assert sorted(number for batch in with_short_batches(loader) for number in batch) == [*range(5)]
    shares = [list(shard(loader, rank_of(rank, 2), "evaluate")) for rank in range(2)]
    assert not set(chain(*shares[0])) & set(chain(*shares[1]))
