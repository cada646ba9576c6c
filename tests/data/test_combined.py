"""Several loaders read as one, against what each mode says in words."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylit.data import CombinedLoader
from raylit.errors import ConfigError

LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=4)


class Loader(list[tuple[int, int]]):
    """A list of batches; a plain list would count as a collection of loaders."""


def loaders(lengths: list[int]) -> list[Loader]:
    return [
        Loader((number, index) for index in range(length)) for number, length in enumerate(lengths)
    ]


def batches(combined: CombinedLoader) -> list[Any]:
    found = list(combined)
    if combined.mode != "sequential":
        assert [(index, loader) for _, index, loader in found] == [
            (index, 0) for index in range(len(found))
        ]
    assert len(found) == len(combined)
    return [batch for batch, _, _ in found]


@given(LENGTHS)
def test_min_size_ends_with_the_shortest(lengths: list[int]) -> None:
    assert batches(CombinedLoader(loaders(lengths), "min_size")) == [
        list(row) for row in zip(*loaders(lengths), strict=False)
    ]


@given(LENGTHS)
def test_max_size_fills_with_none(lengths: list[int]) -> None:
    assert batches(CombinedLoader(loaders(lengths), "max_size")) == [
        list(row) for row in itertools.zip_longest(*loaders(lengths))
    ]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_max_size_cycle_begins_the_shorter_ones_anew(lengths: list[int]) -> None:
    expected = [
        [one[index % len(one)] for one in loaders(lengths)] for index in range(max(lengths))
    ]
    assert batches(CombinedLoader(loaders(lengths), "max_size_cycle")) == expected


@given(LENGTHS)
def test_sequential_reads_one_after_the_other(lengths: list[int]) -> None:
    combined = CombinedLoader(loaders(lengths), "sequential")
    assert list(combined) == [
        (batch, batch[1], batch[0]) for one in loaders(lengths) for batch in one
    ]


@given(LENGTHS, st.integers(0, 7))
def test_limits_hold_for_each_loader(lengths: list[int], limit: int) -> None:
    combined = CombinedLoader(loaders(lengths), "sequential")
    combined.limits = [limit] * len(lengths)
    assert [batch for batch, _, _ in combined] == [
        batch for one in loaders(lengths) for batch in one[:limit]
    ]
    assert len(combined) == sum(combined.lengths())


def test_a_batch_beyond_the_limit_is_not_fetched() -> None:
    fetched = []

    def stream() -> Any:
        for number in range(9):
            fetched.append(number)
            yield number

    combined = CombinedLoader(stream(), "max_size_cycle")
    combined.limits = [3]
    assert [batch for batch, _, _ in combined] == fetched == [0, 1, 2]


def test_batches_come_in_the_nesting_of_the_loaders() -> None:
    combined = CombinedLoader({"a": range(2), "b": [range(2), (range(2),)]}, "min_size")
    assert batches(combined) == [{"a": 0, "b": [0, (0,)]}, {"a": 1, "b": [1, (1,)]}]
    combined.flattened = [range(5, 6)] * 3
    assert combined.iterables == {"a": range(5, 6), "b": [range(5, 6), (range(5, 6),)]}


def test_loaders_without_length() -> None:
    combined = CombinedLoader([iter([1, 2]), range(3)], "max_size")
    assert combined.num_batches() == float("inf")
    with pytest.raises(TypeError, match="has no length"):
        len(combined)
    assert [batch for batch, _, _ in combined] == [[1, 0], [2, 1], [None, 2]]


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle", "sequential"])
def test_no_loaders_give_no_batches(mode: str) -> None:
    assert batches(CombinedLoader([], mode)) == []


def test_every_iteration_begins_when_it_is_asked_for() -> None:
    """Workers start early, and random seeds are drawn in a known order."""
    begun = []

    class Loader:
        def __iter__(self) -> Any:
            begun.append(self)
            return iter([1])

    iter(CombinedLoader([Loader(), Loader()], "min_size"))
    assert len(begun) == 2


def test_wrong_arguments() -> None:
    with pytest.raises(ConfigError, match=r"mode='min'.*Use one of: min_size"):
        CombinedLoader([], "min")
    with pytest.raises(ConfigError, match="holds 1 loaders, but 2 were given"):
        CombinedLoader(range(2)).flattened = [1, 2]
