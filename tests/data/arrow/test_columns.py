"""What each type of Arrow's becomes, what is done with nulls, and how batches are put together."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raylit.data.arrow import ArrowDataset
from raylit.errors import ConfigError, DataError


def first(dataset: ArrowDataset) -> Any:
    """Return the first batch, in the order of the data."""
    return next(iter(dataset.loader(100)))


IMAGES = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4)
TYPES: list[tuple[str, Any, torch.Tensor]] = [
    ("int", pa.array([1, 2, 3]), torch.tensor([1, 2, 3])),
    ("small", pa.array([1, 2, 3], pa.int8()), torch.tensor([1, 2, 3])),
    ("unsigned", pa.array([1, 2, 3], pa.uint64()), torch.tensor([1, 2, 3])),
    ("double", pa.array([1.5, 2, 3]), torch.tensor([1.5, 2, 3])),
    ("half", pa.array(np.float16([1.5, 2, 3])), torch.tensor([1.5, 2, 3])),
    ("nan", pa.array([1.5, float("nan"), 3]), torch.tensor([1.5, float("nan"), 3])),
    (
        "decimal",
        pa.array([Decimal("1.25"), Decimal("2"), Decimal("3")]),
        torch.tensor([1.25, 2, 3]),
    ),
    ("bool", pa.array([True, False, True]), torch.tensor([True, False, True])),
    (
        "time",
        pa.array([datetime.datetime(1970, 1, 1, 0, 0, second) for second in (1, 2, 3)]),
        torch.tensor([1, 2, 3], dtype=torch.float64),
    ),
    (
        "date",
        pa.array([datetime.date(1970, 1, day) for day in (1, 2, 3)]),
        torch.tensor([0, 86400, 172800], dtype=torch.float64),
    ),
    (
        "clock",
        pa.array([datetime.time(0, 0, second) for second in (1, 2, 3)]),
        torch.tensor([1, 2, 3], dtype=torch.float64),
    ),
    (
        "vector",
        pa.FixedSizeListArray.from_arrays(pa.array(np.arange(6.0)), 2),
        torch.arange(6.0).reshape(3, 2),
    ),
    (
        "matrix",
        pa.FixedSizeListArray.from_arrays(
            pa.FixedSizeListArray.from_arrays(pa.array(IMAGES.ravel()), 4), 2
        ),
        torch.from_numpy(IMAGES),
    ),
    ("image", pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES), torch.from_numpy(IMAGES)),
    ("category", pa.array(["b", "a", "b"]).dictionary_encode(), torch.tensor([2, 1, 2])),
]


def saved(table: pa.Table, folder: Path, form: str) -> Any:
    if form == "table":
        return table
    if form == "parquet":
        pq.write_table(table, folder / "t.parquet", row_group_size=2)
        return folder / "t.parquet"
    with pa.ipc.new_file(folder / "t.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return folder / "t.arrow"


@pytest.mark.parametrize("form", ["table", "parquet", "ipc"])
@pytest.mark.parametrize(("name", "array", "expected"), TYPES, ids=[one[0] for one in TYPES])
def test_a_type_becomes_a_tensor(
    name: str, array: Any, expected: torch.Tensor, form: str, tmp_path: Path
) -> None:
    source = saved(pa.table({"row": [0, 1, 2], name: array}), tmp_path, form)
    modes = {"table": ["memory", "stream"], "parquet": ["memory", "stream"]}.get(form)
    for mode in modes or ["memory", "mapped", "stream"]:
        for shuffle in (False, True):
            found = ArrowDataset(source, mode=mode).loader(2, shuffle=shuffle, seed=1)
            batches = list(found)
            rows = torch.cat([batch["row"] for batch in batches])
            values = torch.cat([batch[name] for batch in batches])
            assert values.dtype == expected.dtype
            assert torch.equal(
                torch.nan_to_num(values.double()), torch.nan_to_num(expected[rows].double())
            )


def test_lists_of_varying_length_are_padded_or_nested(tmp_path: Path) -> None:
    table = pa.table({"words": [[1, 2, 3], [], [4]], "y": [0, 1, 2]})
    source = saved(table, tmp_path, "parquet")
    batch = next(iter(ArrowDataset(source).loader(3)))
    assert batch["words"].tolist() == [[1, 2, 3], [0, 0, 0], [4, 0, 0]]
    assert batch["words_length"].tolist() == [3, 0, 1]
    shuffled = next(iter(ArrowDataset(source).loader(3, shuffle=True, seed=3)))
    for row, words, length in zip(
        *(shuffled[k].tolist() for k in ("y", "words", "words_length")), strict=True
    ):
        assert words[:length] == table["words"][row].as_py()
    nested = next(iter(ArrowDataset(source, lists="nested").loader(3)))["words"]
    assert [one.tolist() for one in nested.unbind()] == [[1, 2, 3], [], [4]]


def test_strings_and_bytes_go_to_transform() -> None:
    table = pa.table({"text": ["one", "three", "x"], "raw": [b"a", b"bb", b""], "y": [0, 1, 2]})

    def lengths(batch: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(batch["text"][0], str) and isinstance(batch["raw"][0], bytes)
        return {"size": torch.tensor([len(one) for one in batch["text"]]), "y": batch["y"]}

    found = list(ArrowDataset(table, transform=lengths).loader(2))
    assert [batch["size"].tolist() for batch in found] == [[3, 5], [1]]
    as_tuple = ArrowDataset(
        table, features=["text"], target="y", batch="tuple",
        transform=lambda b: {"text": torch.tensor([[len(t)] for t in b["text"]]), "y": b["y"]},
    )  # fmt: skip
    x, y = next(iter(as_tuple.loader(3)))
    assert x.tolist() == [[3], [5], [1]] and y.tolist() == [0, 1, 2]
    collated = ArrowDataset(table, collate_fn=lambda batch: "".join(batch["text"]))
    assert list(collated.loader(2)) == ["onethree", "x"]
    with pytest.raises(ConfigError, match="transform returned a list"):
        list(ArrowDataset(table, transform=lambda batch: [1]).loader(2))  # type: ignore[arg-type,return-value]


def test_strings_become_codes_on_request_and_unknown_ones_have_their_own() -> None:
    train = ArrowDataset(pa.table({"cut": ["good", "bad", "good"]}), categories=["cut"])
    assert train.vocabulary == {"cut": ["bad", "good"]} and train.num_categories("cut") == 3
    later = ArrowDataset(
        pa.table({"cut": ["fair", "good", None]}), categories=["cut"], nulls="mask"
    )
    batch = next(iter(later.encoded(train.encoding).loader(3)))
    assert batch["cut"].tolist() == [0, 2, 0]
    assert batch["cut_is_null"].tolist() == [False, False, True]
    numbers = ArrowDataset(pa.table({"zip": [70173, 10115, 70173]}), categories=["zip"])
    assert next(iter(numbers.loader(3)))["zip"].tolist() == [2, 1, 2]
    with pytest.raises(ConfigError, match=r"'x' is no category\. There are: zip"):
        numbers.num_categories("x")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("nan", [1.0, float("nan"), 3.0]),
        ("mean", [1.0, 2.0, 3.0]),
        (7, [1, 7, 3]),
        (0.5, [1.0, 0.5, 3.0]),
        ({"x": -1, "*": "error"}, [1, -1, 3]),
    ],
)
@pytest.mark.parametrize("form", ["table", "parquet", "ipc"])
def test_nulls_by_policy(policy: Any, expected: list[float], form: str, tmp_path: Path) -> None:
    source = saved(pa.table({"x": pa.array([1, None, 3])}), tmp_path, form)
    for mode in ("memory", "stream"):
        found = torch.cat([b["x"] for b in ArrowDataset(source, nulls=policy, mode=mode).loader(2)])
        assert np.array_equal(found.numpy(), np.array(expected), equal_nan=True)
        is_whole = all(isinstance(one, int) for one in expected)
        assert found.dtype == (torch.int64 if is_whole else torch.float32)


def test_nulls_of_bools_vectors_times_and_a_mask() -> None:
    table = pa.table(
        {
            "flag": pa.array([True, None]),
            "vector": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2)),
            "day": pa.array([datetime.date(1970, 1, 2), None]),
        }
    )
    batch = next(
        iter(ArrowDataset(table, nulls={"flag": 0, "vector": "nan", "day": "mean"}).loader())
    )
    assert batch["flag"].tolist() == [1, 0]
    assert batch["vector"][0].tolist() == [1, 2] and batch["vector"][1].isnan().all()
    assert batch["day"].tolist() == [86400, 86400]
    masked = next(iter(ArrowDataset(table.select(["flag"]), nulls="mask").loader()))
    assert masked["flag"].tolist() == [True, False] and masked["flag_is_null"].tolist() == [
        False,
        True,
    ]
    kept = first(ArrowDataset(table.select(["flag"]), nulls=False))["flag"]
    assert kept.tolist() == [True, False] and kept.dtype == torch.bool


@pytest.mark.parametrize("width", [-1, 2])
def test_nulls_within_lists_of_bools_are_masked(width: int) -> None:
    flags = pa.array([[True, None], [False, True]], pa.list_(pa.bool_(), width))
    found = first(ArrowDataset(pa.table({"a": flags}), nulls="mask"))["a"]
    assert found.tolist() == [[True, False], [False, True]]


def test_features_stand_side_by_side_in_their_order() -> None:
    table = pa.table(
        {"y": [0, 1], "b": [1, 2], "a": [0.5, 1.5], "flag": [True, False], "z": [8.0, 9.0]}
    )
    x, y = next(iter(ArrowDataset(table, target="y", batch="tuple").loader()))
    assert x.tolist() == [[1, 0.5, 1, 8], [2, 1.5, 0, 9]] and x.dtype == torch.float32
    assert y.tolist() == [0, 1] and y.dtype == torch.int64
    x, y = next(
        iter(ArrowDataset(table, features=["z", "a"], target=["y", "b"], batch="tuple").loader())
    )
    assert x.tolist() == [[8, 0.5], [9, 1.5]] and y.tolist() == [[0, 1], [1, 2]]
    (x,) = next(iter(ArrowDataset(table, features=["b"], batch="tuple").loader()))
    assert x.tolist() == [[1], [2]]
    x, y = next(
        iter(
            ArrowDataset(
                table, features=["a"], target="b", batch="tuple", float_dtype=torch.float64
            ).loader()
        )
    )
    assert x.dtype == torch.float64


@dataclass
class Pair:
    a: torch.Tensor
    y: torch.Tensor
    weight: float = 1.0


def test_a_batch_as_a_dataclass_and_an_image_as_x() -> None:
    table = pa.table({"a": [0.5, 1.5], "y": [0, 1]})
    batch = next(iter(ArrowDataset(table, batch=Pair).loader()))
    assert isinstance(batch, Pair) and batch.a.tolist() == [0.5, 1.5] and batch.weight == 1.0
    with pytest.raises(ConfigError, match="Pair has a field 'a', but there is no such column"):
        ArrowDataset(table.select(["y"]), batch=Pair)
    images = pa.table(
        {"image": pa.FixedShapeTensorArray.from_numpy_ndarray(IMAGES), "y": [0, 1, 2]}
    )
    x, _ = next(iter(ArrowDataset(images, target="y", batch="tuple").loader(2)))
    assert torch.equal(x, torch.from_numpy(IMAGES[:2])) and x.dtype == torch.uint8


def test_normalized_features_have_mean_0_and_deviation_1() -> None:
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "x": rng.normal(5, 3, 1000),
            "n": rng.integers(0, 9, 1000),
            "same": [4.0] * 1000,
            "y": rng.normal(7, 1, 1000),
        }
    )
    x, y = next(iter(ArrowDataset(table, target="y", batch="tuple", normalize=True).loader(1000)))
    assert (
        x[:, :2].mean(0).abs().max() < 1e-6
        and (x[:, :2].std(0, correction=0) - 1).abs().max() < 1e-6
    )
    assert (x[:, 2] == 0).all()
    assert torch.equal(y, torch.tensor(table["y"].to_numpy()).float())


def test_a_data_set_is_indexed_by_loaders_of_torch(tmp_path: Path) -> None:
    source = saved(pa.table({"x": [0.0, 1.0, 2.0], "y": [0, 1, 2]}), tmp_path, "ipc")
    for mode in ("memory", "mapped"):
        dataset = ArrowDataset(source, target="y", batch="tuple", mode=mode)
        loader = torch.utils.data.DataLoader(dataset, batch_size=2)  # type: ignore[arg-type]
        assert [(x.tolist(), y.tolist()) for x, y in loader] == [([[0], [1]], [0, 1]), ([[2]], [2])]
        assert dataset[-1][1] == 2 and len(dataset) == 3
        with pytest.raises(IndexError):
            dataset[3]
    with pytest.raises(DataError, match=r"Read it with dataset.loader"):
        ArrowDataset(source, mode="stream")[0]


@pytest.mark.parametrize("mode", ["memory", "mapped"])
def test_a_row_is_gathered_without_a_copy_of_the_others(mode: str, tmp_path: Path) -> None:
    raw = [bytes([number]) * 100_000 for number in range(40)]
    table = pa.concat_tables(pa.table({"raw": raw[start : start + 2]}) for start in range(0, 40, 2))
    source = saved(table, tmp_path, "ipc")
    dataset = ArrowDataset(source, transform=lambda batch: batch, mode=mode)
    assert dataset[0] == {"raw": raw[0]}
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    pa.set_memory_pool(pool)
    try:
        found: Any = dataset.__getitems__([17, 0, 16, 17])
    finally:
        pa.set_memory_pool(before)
    assert [one["raw"] for one in found] == [raw[17], raw[0], raw[16], raw[17]]
    assert 0 < pool.max_memory() < 1_000_000  # of 4 MB
    assert dataset.__getitems__([]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"columns": ["pricee"]},
         "columns names the column 'pricee', which is not there. Did you mean 'price'?"),
        ({"target": "coat"}, "Did you mean 'cat'?"),
        ({"features": ["price"], "target": "nothing"}, "There are: price, cat, text"),
        ({}, r"The column 'text' is string, which has no form as a tensor. Give it a code with"
             r" categories=\['text'\]"),
        ({"columns": ["price"], "batch": "list"}, "Use 'dict', 'tuple' or a dataclass"),
        ({"columns": ["price"], "target": "price", "batch": "tuple"}, "needs features"),
        ({"columns": ["price"], "mode": "disk"}, "Use one of: auto, memory, mapped, stream"),
        ({"columns": ["price"], "mode": "mapped"}, "mode='mapped' needs uncompressed Arrow IPC"),
        ({"columns": ["price"], "nulls": "drop"},
         "nulls='drop' of the column 'price' is not known"),
        ({"columns": ["cat"], "nulls": "mean"}, "has no mean"),
        ({"columns": ["price"], "nulls": {"prices": 0}}, "nulls names the column 'prices'"),
        ({"features": "price"}, r"Give a list of names: features=\['price'\]"),
        ({"columns": ["price"], "features": ["cat"]}, "columns= leaves out 'cat'"),
        ({"columns": ["price"], "normalize": ["cat"]}, "normalize names the column 'cat'"),
        ({"columns": ["price"], "buffer_rows": 0}, "give a whole number of at least 1"),
        ({"columns": ["price"], "lists": "ragged"}, "Use 'padded' or 'nested'"),
        ({"columns": ["price"], "float_dtype": torch.int64}, "no floating-point type"),
        ({"columns": ["price"], "float_dtype": torch.bfloat16}, "Use torch.float32"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    table = pa.table({"price": [1.0], "cat": pa.array(["a"]).dictionary_encode(), "text": ["b"]})
    source = saved(table, tmp_path, "parquet")
    with pytest.raises((ConfigError, DataError), match=message):
        ArrowDataset(source, **arguments)


def test_numbers_that_no_tensor_can_hold() -> None:
    table = pa.table({"x": pa.array([2**63], pa.uint64())})
    with pytest.raises(DataError, match="9223372036854775808"):
        list(ArrowDataset(table).loader())


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_value_for_nulls_of_times_is_in_seconds(unit: str) -> None:
    times = pa.array([datetime.datetime(1970, 1, 1, 0, 0, 5), None], pa.timestamp(unit))
    dates = pa.array([datetime.date(1970, 1, 2), None])
    table = pa.table({"time": times, "date": dates})
    batch = first(ArrowDataset(table, nulls=-2))
    assert batch["time"].tolist() == [5.0, -2.0]
    assert batch["date"].tolist() == [86_400.0, -2.0]


def test_a_masked_null_is_0_among_normalized_values() -> None:
    batch = first(ArrowDataset(pa.table({"a": [1.0, None, 3.0]}), nulls="mask", normalize=True))
    assert batch["a"].tolist() == [-1.0, 0.0, 1.0]
    assert batch["a_is_null"].tolist() == [False, True, False]


def test_a_column_that_never_changes_is_normalized_to_0() -> None:
    for value in (0.1, 1e9 + 0.1):
        batch = first(ArrowDataset(pa.table({"x": [value] * 7}), normalize=True))
        assert batch["x"].tolist() == [0.0] * 7


def test_a_target_has_no_mask_in_a_tuple() -> None:
    table = pa.table({"x": [1.0, None], "y": [5.0, None]})
    options: dict[str, Any] = {"target": "y", "batch": "tuple"}
    with pytest.raises(DataError, match="'y' has 1 nulls"):
        ArrowDataset(table, nulls="mask", **options)
    with pytest.raises(ConfigError, match="no place for its mask"):
        ArrowDataset(table, nulls={"y": "mask", "x": 0.0}, **options)


@pytest.mark.parametrize("width", [-1, 2])
def test_nulls_within_lists_are_told(width: int) -> None:
    table = pa.table({"a": pa.array([[1, None], [3, 4]], pa.list_(pa.int64(), width))})
    with pytest.raises(DataError, match="'a' has 1 nulls within its lists"):
        first(ArrowDataset(table))
    assert first(ArrowDataset(table, nulls=-1))["a"].tolist() == [[1, -1], [3, 4]]


@pytest.mark.parametrize(
    ("values", "nulls", "message"),
    [
        (pa.array([[1], None]), "nan", "has no NaN"),
        (pa.array([[1], None]), 0.5, "cannot hold that"),
        (pa.array([[1, 2], None], pa.list_(pa.uint8(), 2)), -1, "cannot hold that"),
        (pa.array([1, None]), True, "cannot hold that"),
        (pa.array([1, None]), [0], "cannot hold that"),
        (pa.array([1, None]), 2**63, "a int64 cannot hold that"),
        (pa.array([1, None], pa.uint64()), -1, "a uint64 cannot hold that"),
        (pa.array([1, None], pa.float32()), 2**24 + 1, "a float cannot hold that"),
    ],
)
def test_a_value_for_nulls_that_cannot_be(values: pa.Array, nulls: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ArrowDataset(pa.table({"a": values}), nulls=nulls)


def test_a_value_for_nulls_may_be_out_of_the_range_of_a_small_type() -> None:
    table = pa.table({"a": pa.array([1, None], pa.uint8())})
    assert first(ArrowDataset(table, nulls=-1))["a"].tolist() == [1, -1]


def test_lists_get_no_codes() -> None:
    table = pa.table({"words": [["a"], ["b"]]})
    with pytest.raises(ConfigError, match="only single values get codes"):
        ArrowDataset(table, categories=["words"])
    with pytest.raises(DataError, match=r"no form as a tensor\. Let transform="):
        ArrowDataset(table)


def test_infinity_has_no_mean() -> None:
    with pytest.raises(DataError, match="'x' has infinite values"):
        first(ArrowDataset(pa.table({"x": [1.0, float("inf")]}), normalize=True))
