"""A plan says which samples an epoch reads: each once, in an order that resuming does not change.

Whatever draws the order, however many ranks read it, and wherever it is cut.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from raylit.data.combined import CombinedLoader
from raylit.data.loaders import prepare
from raylit.data.sampling.plan import set_epoch
from raylit.parallel import World
from raylit.runtime import rng

SIZE = 23


class ByPython(Sampler[int]):
    """Shuffles with python's `random` as it begins."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __iter__(self) -> Iterator[int]:
        order = list(range(self.number))
        random.shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return self.number


class Lazily(ByPython):
    """Draws an index at a time, from all that belongs to the process."""

    def __iter__(self) -> Iterator[int]:
        left = list(range(self.number))
        while left:
            drawn = random.random() + np.random.rand() + torch.rand(()).item()
            yield left.pop(int(drawn * 1000) % len(left))


class OfItsOwn(ByPython):
    """Has generators, of numpy and of python."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.numpy = np.random.default_rng(5)
        self.python = random.Random(6)

    def __iter__(self) -> Iterator[int]:
        order = self.numpy.permutation(self.number).tolist()
        self.python.shuffle(order)
        yield from order


class Endless(ByPython):
    """Has no end, but says how many make an epoch."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield from super().__iter__()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(8)


SAMPLERS: dict[str, Callable[[], Any]] = {
    "in order": lambda: range(SIZE),
    "shuffled": lambda: RandomSampler(range(SIZE)),
    "own generator": lambda: RandomSampler(range(SIZE), generator=seeded()),
    "python": lambda: ByPython(SIZE),
    "lazily": lambda: Lazily(SIZE),
    "generators": lambda: OfItsOwn(SIZE),
    "subset": lambda: SubsetRandomSampler(range(SIZE), generator=seeded()),
}
WITH_REPLACEMENT: dict[str, Callable[[], Any]] = {
    "replacement": lambda: RandomSampler(
        range(SIZE), replacement=True, num_samples=70, generator=seeded()
    ),
    "weighted": lambda: WeightedRandomSampler([1.0] * SIZE, 40),
    "endless": lambda: Endless(SIZE),
}


def rank_of(rank: int, size: int) -> Any:
    """The place of a rank whose partners are like it."""
    world = World(torch.device("cpu"))
    world.rank = rank
    world.size = size
    world.all_gather_object = lambda value: [value] * size  # type: ignore[method-assign]
    return world


def prepared(
    sampler: Any, rank: int, size: int, batch: int = 3, in_batches: bool = False, workers: int = 0
) -> CombinedLoader:
    given = (
        {"batch_sampler": BatchSampler(sampler, batch, False)}
        if in_batches
        else {"batch_size": batch, "sampler": sampler}
    )
    data: Any = DataLoader(range(SIZE), collate_fn=list, num_workers=workers, **given)  # type: ignore[arg-type]
    return prepare(
        data,
        "train",
        rank_of(rank, size),
        limit=1.0,
        distribute=True,
        overfit=False,
        origin="data",
        seed=1,
    )


def begin(loader: CombinedLoader, epoch: int) -> Iterator[Any]:
    for one in loader.readers:
        set_epoch(one, epoch)
    loader.recount()
    return iter(loader)


def read(loader: CombinedLoader, epoch: int) -> list[list[int]]:
    return [batch for batch, _, _ in begin(loader, epoch)]


def draw_something(number: int) -> None:
    """What training draws between two batches."""
    for _ in range(number % 3):
        random.random()
        np.random.rand()
        torch.rand(())


def cases(samplers: dict[str, Callable[[], Any]]) -> Any:
    return given(
        name=st.sampled_from(sorted(samplers)),
        size=st.integers(1, 4),
        batch=st.integers(1, 5),
        in_batches=st.booleans(),
        seed=st.integers(0, 99),
    )


@cases(SAMPLERS)
@settings(deadline=None, max_examples=25)
def test_ranks_read_each_sample_once(
    name: str, size: int, batch: int, in_batches: bool, seed: int
) -> None:
    found = []
    for rank in range(size):
        torch.manual_seed(seed + rank)  # as dropout would leave them
        random.seed(seed + rank)
        np.random.seed(seed + rank)
        loader = prepared(SAMPLERS[name](), rank, size, batch, in_batches)
        found.append([read(loader, epoch) for epoch in (3, 4)])
    for epoch in (0, 1):
        samples = [index for rank in found for one in rank[epoch] for index in one]
        assert set(samples) == set(range(SIZE))
        assert len(samples) == -(-SIZE // size) * size
    if name != "in order" and size > 1:
        assert found[0][0] != found[0][1], "another order in each epoch"


@pytest.mark.parametrize("samplers", [SAMPLERS, WITH_REPLACEMENT])
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_reading_on_is_as_if_it_had_not_ended(
    samplers: dict[str, Callable[[], Any]], data: st.DataObject
) -> None:
    """Also where training draws from the same generators in between, and in the epoch after."""
    make = samplers[data.draw(st.sampled_from(sorted(samplers)))]
    size = data.draw(st.integers(1, 4))
    rank = data.draw(st.integers(0, size - 1))
    batch = data.draw(st.integers(1, 5))
    in_batches = data.draw(st.booleans())

    def fit(cut: int | None, state: Any = None) -> tuple[list[Any], Any]:
        seed = 11 if state is None else 77
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        loader = prepared(make(), rank, size, batch, in_batches)
        rows: list[Any] = []
        epochs = [0, 1]
        items: Iterator[Any] | None = None
        if state is not None:
            epoch, number, states, captured = state
            for one in loader.readers:
                set_epoch(one, epoch)
            loader.go_on(number, states)
            items = iter(loader)
            rng.restore(captured)
            epochs = epochs[epoch:]
        for epoch in epochs:
            for indices, index, _ in items or begin(loader, epoch):
                draw_something(index)
                rows.append((epoch, index, indices, loader.is_last))
                if len(rows) == cut:
                    return rows, (epoch, index + 1, loader.states(index + 1), rng.state())
            items = None
        return rows, None

    whole, _ = fit(None)
    cut = data.draw(st.integers(1, len(whole)))
    first, state = fit(cut)
    rest, _ = fit(None, state)
    assert first + rest == whole
    assert [row[1] for row in whole if row[3]] == [len(whole) // 2 - 1] * 2, "the last is known"


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(sorted(SAMPLERS)),
    before=st.integers(1, 4),
    after=st.integers(1, 4),
    batch=st.integers(1, 4),
    new_batch=st.integers(1, 4),
    cut=st.integers(0, 5),
)
def test_what_is_left_is_dealt_out_to_other_ranks(
    name: str, before: int, after: int, batch: int, new_batch: int, cut: int
) -> None:
    """Of a cursor in samples each sample comes once, whoever goes on, in batches of any size."""
    loaders = [prepared(SAMPLERS[name](), rank, before, batch) for rank in range(before)]
    seen: list[int] = []
    states: list[Any] = []
    for loader in loaders:
        items = begin(loader, 2)
        number = 0
        while number < cut and (item := next(items, None)) is not None:
            seen += item[0]
            number += 1
        states.append((number, loader.states(number)))
    number, state = states[0]
    if number == 0:
        return
    for rank in range(after):
        loader = prepared(SAMPLERS[name](), rank, after, new_batch)
        for one in loader.readers:
            set_epoch(one, 2)
        loader.go_on(number, state)
        for given_batch, _, _ in loader:
            seen += given_batch
    assert set(seen) == set(range(SIZE))
    assert len(seen) - SIZE < before + after, "but for what fills up the last round"


def test_order_is_a_function_of_seed_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No device is seeded for it, and nobody's random numbers change."""
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    for make in SAMPLERS.values():
        loader = prepared(make(), 0, 2)
        before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
        first = read(loader, 5)
        assert before == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
        read(loader, 6)
        draw_something(2)
        assert first == read(prepared(make(), 0, 2), 5)
    assert not seeded


def test_a_sampler_within_torchs_batch_sampler_is_read_on_several_ranks() -> None:
    weights = [1.0, *[0.0] * (SIZE - 1)]
    loader = prepared(WeightedRandomSampler(weights, 12), 1, 2, in_batches=True)
    assert read(loader, 0) == [[0, 0, 0], [0, 0, 0]]


class WithoutEnd(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        while True:
            yield from (random.randrange(SIZE) for _ in range(5))


def test_an_endless_sampler_is_drawn_as_it_is_wanted() -> None:
    found = []
    for rank in range(2):
        items = begin(prepared(WithoutEnd(), rank, 2), 0)
        found.append([next(items)[0] for _ in range(700)])
    assert found[0] != found[1]
    items = begin(prepared(WithoutEnd(), 0, 2), 0)
    assert [next(items)[0] for _ in range(700)] == found[0]


class Shrinking(Sampler[int]):
    """Has fewer samples in later epochs, and in the third fewer than it says."""

    epoch = 0

    def __init__(self) -> None:
        pass

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self) - (4 if self.epoch == 2 else 0)))

    def __len__(self) -> int:
        return 12 - 3 * (self.epoch % 2)


@pytest.mark.parametrize("size", [1, 2])
def test_the_length_is_that_of_the_epoch(size: int) -> None:
    loader = prepared(Shrinking(), 0, size, batch=1)
    for epoch, number in enumerate([12, 9, 8, 9]):
        items = begin(loader, epoch)
        last = [loader.is_last for _ in items]
        assert last == [False] * (-(-number // size) - 1) + [True]
