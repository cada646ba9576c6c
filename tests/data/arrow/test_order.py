"""Each row once per epoch, for any number of ranks and workers, in every mode, after any cut."""

from __future__ import annotations

import functools
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylit.data.arrow import ArrowDataset, ArrowLoader
from raylit.data.arrow.order import Keyed, Share, all_positions, windows
from raylit.data.combined import CombinedLoader
from raylit.data.sampling.sampler import deal

MODES = ("memory", "mapped", "stream", "stream in small windows")


@functools.cache
def files(num_rows: int, group_rows: int) -> Path:
    """Write rows that are their own numbers, as two Parquet files and one of IPC."""
    folder = Path(tempfile.mkdtemp(prefix="raylit-test-"))
    table = pa.table({"row": np.arange(num_rows), "half": np.arange(num_rows) / 2})
    cut = num_rows // 3
    (folder / "parquet").mkdir()
    for number, part in enumerate((table.slice(0, cut), table.slice(cut))):
        if part.num_rows:
            path = folder / "parquet" / f"{number}.parquet"
            pq.write_table(part, path, row_group_size=group_rows)
    path = str(folder / "rows.arrow")
    pyarrow.feather.write_feather(table, path, compression="uncompressed", chunksize=group_rows)
    return folder


def dataset(num_rows: int, group_rows: int, mode: str) -> ArrowDataset:
    folder = files(num_rows, group_rows)
    source = folder / "rows.arrow" if mode == "mapped" else folder / "parquet"
    rows = 3 * group_rows if mode.endswith("windows") else None
    return ArrowDataset(source, mode=mode.partition(" ")[0], buffer_rows=rows)


def loader(
    data: ArrowDataset,
    rank: int,
    size: int,
    stage: str = "train",
    drop: bool = False,
    **options: Any,
) -> ArrowLoader:
    return ArrowLoader(data, **options).dealt(stage, rank, size, drop=drop)


def rows_of(batches: Any) -> list[int]:
    return [row for batch in batches for row in batch["row"].tolist()]


shapes = st.tuples(st.integers(1, 90), st.integers(1, 20))
modes = st.sampled_from(MODES)


@settings(max_examples=60, deadline=None)
@given(shapes, modes, st.integers(1, 5), st.integers(1, 16), st.booleans(), st.integers(0, 3))
def test_each_row_comes_once_whatever_the_number_of_ranks(
    shape: tuple[int, int], mode: str, ranks: int, batch_size: int, shuffle: bool, epoch: int
) -> None:
    data = dataset(*shape, mode)
    for stage in ("val", "train", "drop", "predict"):
        found: list[list[int]] = []
        for rank in range(ranks):
            options = {"batch_size": batch_size, "shuffle": shuffle, "seed": 5}
            name = "train" if stage == "drop" else stage
            one = loader(data, rank, ranks, name, stage == "drop", **options)
            one.set_epoch(epoch)
            batches = list(one)
            assert len(batches) == len(one)
            assert all(len(batch["row"]) == batch_size for batch in batches[:-1])
            assert all((batch["half"] * 2 == batch["row"]).all() for batch in batches)
            found.append(rows_of(batches))
        together = [row for one in found for row in one]
        counts = set(map(len, found))
        assert max(counts) - min(counts) <= (stage in ("val", "predict"))
        if stage == "drop":
            assert len(set(together)) == len(together) == shape[0] // ranks * ranks
            continue
        assert set(together) == set(range(shape[0]))
        if stage == "train":
            assert len(together) - shape[0] < ranks
        else:
            assert len(together) == shape[0]
        if stage == "predict" and not shuffle:
            assert together == list(range(shape[0]))


@settings(max_examples=80, deadline=None)
@given(
    shapes,
    modes,
    st.integers(1, 5),
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(1, 16),
    st.data(),
)
def test_the_rest_of_an_epoch_is_dealt_out_anew(
    shape: tuple[int, int],
    mode: str,
    ranks: int,
    batch_size: int,
    later_ranks: int,
    later_size: int,
    draw: st.DataObject,
) -> None:
    """Cut at any batch, go on with any other number of ranks and any other size of batches."""
    data = dataset(*shape, mode)
    options: dict[str, Any] = {"shuffle": True, "seed": 1}
    first = [
        CombinedLoader(loader(data, rank, ranks, batch_size=batch_size, **options))
        for rank in range(ranks)
    ]
    whole_batches = shape[0] // (ranks * batch_size)
    number = draw.draw(st.integers(0, whole_batches), label="cut")
    seen: list[int] = []
    for one in first:
        batches = iter(one)
        for _ in range(number):
            seen += next(batches)[0]["row"].tolist()
    assert len(set(seen)) == number * ranks * batch_size
    state = first[0].states(number)
    rest = []
    for rank in range(later_ranks):
        one = CombinedLoader(loader(data, rank, later_ranks, batch_size=later_size, **options))
        one.go_on(number, state, number)
        rest += [row for batch, _, _ in one for row in batch["row"].tolist()]
    left = set(range(shape[0])) - set(seen)
    # only the last step may repeat rows; of the same ranks those that the epoch began with
    assert left <= set(rest) and len(rest) < len(left) + later_ranks


@settings(max_examples=60, deadline=None)
@given(shapes, modes, st.integers(1, 3), st.integers(1, 16), st.booleans(), st.data())
def test_a_cut_epoch_gives_the_same_batches(
    shape: tuple[int, int],
    mode: str,
    ranks: int,
    batch_size: int,
    shuffle: bool,
    draw: st.DataObject,
) -> None:
    data = dataset(*shape, mode)

    def make() -> CombinedLoader:
        one = loader(data, ranks - 1, ranks, batch_size=batch_size, shuffle=shuffle, seed=2)
        one.set_epoch(3)
        return CombinedLoader(one)

    whole = [batch for batch, _, _ in make()]
    number = draw.draw(st.integers(1, len(whole)), label="cut")
    first = make()
    batches = iter(first)
    for _ in range(number):
        next(batches)
    later = make()
    later.go_on(number, first.states(number))
    rest = [batch for batch, _, _ in later]
    assert len(rest) == len(whole) - number
    for one, other in zip(rest, whole[number:], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in ("row", "half"))


@pytest.mark.parametrize("later_size", [2, 4])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_shorter_one_goes_on_in_the_pass_that_it_was_in(shuffle: bool, later_size: int) -> None:
    """Beside a longer loader it begins again and again: 8 rows, of which 4 were read twice."""
    data = dataset(8, 4, "memory")

    def make(batch_size: int) -> CombinedLoader:
        one = loader(data, 0, 1, batch_size=batch_size, shuffle=shuffle)
        return CombinedLoader({"short": one, "long": range(10)}, "max_size_cycle")

    whole = [batch["short"]["row"].tolist() for batch, _, _ in make(2)]
    first, later = make(2), make(later_size)
    batches = iter(first)
    for _ in range(6):
        next(batches)
    later.go_on(6, first.states(6))
    rest = [row for batch, _, _ in later for row in batch["short"]["row"].tolist()]
    assert rest[:4] == whole[6] + whole[7]
    if later_size == 2:
        assert rest == [*chain(*whole[6:])]


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(
    shapes,
    modes,
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(1, 16),
    st.integers(1, 5),
    st.integers(0, 3),
    st.data(),
)
def test_ranks_and_workers_change_within_an_epoch(
    shape: tuple[int, int],
    mode: str,
    ranks: int,
    workers: int,
    batch_size: int,
    later_ranks: int,
    later_workers: int,
    draw: st.DataObject,
) -> None:
    data = dataset(*shape, mode)
    number = draw.draw(st.integers(0, shape[0] // (ranks * batch_size)), label="cut")
    options: dict[str, Any] = {"batch_size": batch_size, "shuffle": True, "seed": 1}
    seen: list[int] = []
    for rank in range(ranks):
        first = CombinedLoader(loader(data, rank, ranks, num_workers=workers, **options))
        batches = iter(first)
        seen += rows_of(next(batches)[0] for _ in range(number))
    rest: list[int] = []
    for rank in range(later_ranks):
        one = loader(data, rank, later_ranks, num_workers=later_workers, **options)
        later = CombinedLoader(one)
        later.go_on(number, first.states(number), number)
        rest += rows_of(item[0] for item in later)
    assert len(seen) == len(set(seen)) == number * ranks * batch_size
    left = set(range(shape[0])) - set(seen)
    # only the last step may repeat rows; of the same ranks those that the epoch began with
    assert left <= set(rest) and len(rest) < len(left) + later_ranks


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_workers", [1, 3])
def test_worker_processes_give_the_same_batches(mode: str, num_workers: int) -> None:
    data = dataset(83, 7, mode)
    for stage in ("train", "val"):
        for number in (0, 3):
            found = []
            for workers in (0, num_workers):
                one = loader(
                    data, 1, 2, stage, batch_size=5, shuffle=True, seed=2, num_workers=workers
                )
                one.begins_at = number
                found.append(rows_of(one.rest(one)))
            assert found[0] == found[1]


@pytest.mark.parametrize("mode", MODES)
def test_fewer_large_rows_are_gathered_at_a_time(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of what is gathered changes neither the order nor where an epoch goes on."""
    one = loader(dataset(90, 7, mode), 1, 2, batch_size=4, shuffle=True, seed=3)
    whole = rows_of(one)
    monkeypatch.setattr("raylit.data.arrow.loader.CHUNK_BYTES", 10 * one.dataset.row_bytes)
    assert max(map(len, one._reader().chunks(0, 45))) == 8
    if mode in ("memory", "mapped"):  # a worker takes its share of a window otherwise
        assert one._batches_per_block() == 2
    assert rows_of(one) == whole
    one.begins_at = 3
    assert rows_of(one.rest(one)) == whole[12:]


def test_the_order_changes_with_epoch_and_seed_alone() -> None:
    data = dataset(90, 7, "stream in small windows")
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            one = ArrowLoader(data, 7, shuffle=True, seed=seed)
            one.set_epoch(epoch)
            orders[seed, epoch] = rows_of(one)
            assert orders[seed, epoch] == rows_of(one)
    assert len({tuple(order) for order in orders.values()}) == 4


def test_a_stream_goes_on_in_memory_in_the_same_order() -> None:
    """A checkpoint that a machine with little memory saved is gone on from on one with much."""
    streamed = loader(
        dataset(90, 7, "stream in small windows"), 0, 1, batch_size=8, shuffle=True, seed=4
    )
    whole = list(streamed)
    state = streamed.state_dict()
    later = loader(dataset(90, 7, "memory"), 0, 1, batch_size=8, shuffle=True)
    later.load_state_dict({**state, "number": 4, "digest": later.dataset.digest})
    assert rows_of(later) == rows_of(whole[4:])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    st.integers(1, 20),
    st.integers(0, 99),
)
def test_windows_hold_each_row_once(counts: list[int], limit: int, seed: int) -> None:
    for key in ((), (seed, 0)):
        order = all_positions(tuple(counts), limit, key)
        assert sorted(order.tolist()) == list(range(sum(counts)))
        plan = windows(counts, limit, key)
        assert plan.starts[-1] == sum(counts)
        for number, pieces in enumerate(plan.pieces):
            rows = plan.starts[number + 1] - plan.starts[number]
            assert rows <= limit or len(pieces) == 1


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.sampled_from(["train", "drop", "evaluate"]))
def test_ranks_take_the_rows_that_samplers_give_them(total: int, size: int, mode: str) -> None:
    for rank in range(size):
        one = Share(total, rank, size, mode)
        assert one.positions(0, len(one)).tolist() == list(
            deal(list(range(total)), rank, size, mode)
        )


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40))
def test_a_keyed_permutation_is_one(num: int, key: int) -> None:
    found = Keyed(num, key)(np.arange(num))
    assert sorted(found.tolist()) == list(range(num))


def test_an_epoch_goes_on_as_it_was_begun_and_the_next_as_asked_for() -> None:
    data = dataset(90, 7, "stream in small windows")
    shuffled = loader(data, 0, 1, batch_size=8, shuffle=True, seed=4)
    begun = rows_of(shuffled)
    other = loader(dataset(90, 7, "stream"), 0, 1, batch_size=8)
    other.load_state_dict({**shuffled.state_dict(), "number": 3})
    assert rows_of(other) == begun[24:]
    assert rows_of(other) == list(range(90))
