"""Wrong data is told of before the first step where it can be, with file, row group and column."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from raylit.data.arrow import ArrowDataset
from raylit.errors import DataError

TABLE = pa.table({"price": np.arange(1000) / 4, "cut": ["good", "bad"] * 500})


def refused(match: str, source: Any, **options: Any) -> None:
    with pytest.raises(DataError, match=match):
        ArrowDataset(source, **options)


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "houses.parquet"
    pq.write_table(TABLE, path, row_group_size=100)
    return path


def test_no_file_no_folder_no_match(parquet: Path) -> None:
    refused(
        r"There is no .*house\.parquet\. Did you mean '.*houses\.parquet'",
        parquet.with_name("house.parquet"),
    )
    refused(r"There is no .*\*\.csv", parquet.parent / "*.csv")
    refused("empty list of files", [])
    empty = parquet.parent / "empty"
    empty.mkdir()
    refused("holds no file to read", empty)
    (empty / "notes.md").write_text("words")
    refused("holds no file to read .1 of other kinds.*say format='parquet'", empty)
    refused("is not known. Did you mean 'parquet'", parquet, format="parqet")
    refused("What .*notes.md is cannot be told by its name", empty / "notes.md")
    refused("ArrowDataset got a int", 3)


def test_a_truncated_file(parquet: Path, tmp_path: Path) -> None:
    whole = parquet.read_bytes()
    parquet.write_bytes(whole[: len(whole) // 2])
    refused(r"houses.parquet is no whole Parquet file.*It was cut off", parquet)
    parquet.write_bytes(b"")
    refused(r"houses.parquet is empty: 0 bytes", parquet)
    parquet.write_bytes(b"price,cut\n1,good\n")
    refused("no whole Parquet file", parquet)
    arrow = tmp_path / "houses.arrow"
    pyarrow.feather.write_feather(TABLE, str(arrow), compression="uncompressed")
    arrow.write_bytes(arrow.read_bytes()[:-300])
    refused("houses.arrow is no whole Arrow IPC file.*cut off", arrow)


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_damaged_row_group_is_named(parquet: Path, mode: str) -> None:
    group = pq.read_metadata(parquet).row_group(4).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    data = bytearray(parquet.read_bytes())
    data[start : start + group.total_compressed_size] = b"\xff" * group.total_compressed_size
    parquet.write_bytes(data)
    dataset = ArrowDataset(parquet, columns=["price"], mode=mode)
    with pytest.raises(
        DataError, match=r"houses.parquet, row group 4 could not be read.*damaged, or cut off"
    ):
        list(dataset.loader())


def test_files_of_different_columns(parquet: Path) -> None:
    other = parquet.with_name("later.parquet")
    pq.write_table(TABLE.set_column(0, "price", pc.cast(TABLE["price"], pa.string())), other)
    refused(
        r"The column 'price' is double in houses.parquet, but string in later.parquet",
        parquet.parent,
        columns=["price"],
    )
    pq.write_table(TABLE.rename_columns(["prize", "cut"]), other)
    refused(
        r"houses.parquet has 'price', later.parquet does not. Did you mean 'prize'", parquet.parent
    )
    pq.write_table(TABLE.append_column("more", pa.array(range(1000))), other)
    refused(r"later.parquet has 'more', houses.parquet does not", parquet.parent)
    pq.write_table(TABLE.select(["cut", "price"]), other)
    assert len(ArrowDataset(parquet.parent, columns=["price"])) == 2000
    other.rename(other.with_suffix(".csv"))
    refused("The files are of different formats", parquet.parent)


def test_partitions_of_different_columns(tmp_path: Path) -> None:
    for folder in ("year=2023", "month=5"):
        (tmp_path / folder).mkdir()
        pq.write_table(TABLE, tmp_path / folder / "a.parquet")
    refused(r"The folders of year=2023/a.parquet name the columns \['year'\]", tmp_path)


def test_empty_files_and_tables(tmp_path: Path) -> None:
    pq.write_table(TABLE.slice(0, 0), tmp_path / "none.parquet")
    refused("none.parquet has no rows", tmp_path / "none.parquet")
    pyarrow.feather.write_feather(TABLE.slice(0, 0), str(tmp_path / "none.arrow"))
    refused("none.arrow has no rows", tmp_path / "none.arrow")
    (tmp_path / "none.csv").write_text("price,cut\n")
    refused("none.csv has no rows below its header", tmp_path / "none.csv")
    refused("The table has no rows", TABLE.slice(0, 0))
    refused("No row passes the filters", TABLE, filters=[("price", ">", 1e9)])
    pq.write_table(TABLE, tmp_path / "some.parquet")
    refused(
        "No row of .*some.parquet passes the filter",
        tmp_path / "some.parquet",
        filters=[("price", ">", 1e9)],
    )


def test_filters_that_do_not_fit(parquet: Path) -> None:
    refused(
        "filters names the column 'prices', which is not there. Did you mean 'price'",
        parquet,
        filters=[("prices", ">", 0)],
    )
    refused("does not fit the columns price, cut", parquet, filters=pc.field("prices") > 0)
    refused("does not fit the columns", parquet, filters=[("cut", ">", 0)])
    refused(r"Give tuples such as", parquet, filters=["price"])
    refused("is not understood", parquet, filters=[("price", "=>", 0)])


def test_nulls_that_nobody_spoke_of(tmp_path: Path) -> None:
    prices = pa.array([None if row == 250 else row / 4 for row in range(1000)])
    table = TABLE.set_column(0, "price", prices)
    path = tmp_path / "houses.parquet"
    pq.write_table(table, path, row_group_size=100)
    told = (
        r"The column 'price' has 1 nulls in .*houses.parquet, row group 2.*nulls=\{'price': 'nan'\}"
    )
    refused(told, path, columns=["price"])
    pq.write_table(table, path, row_group_size=100, write_statistics=False)
    for mode in ("memory", "stream"):
        with pytest.raises(DataError, match=told):
            list(ArrowDataset(path, columns=["price"], mode=mode).loader())
    refused("has 1 nulls in the table", table, columns=["price"])
    inner = pa.table({"v": pa.array([[1.0, None]], pa.list_(pa.float64(), 2))})
    with pytest.raises(DataError, match="has 1 nulls within its lists"):
        list(ArrowDataset(inner).loader())


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv"])
def test_a_file_that_vanishes_or_changes(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"houses.{ending}"

    def write(rows: int) -> None:
        table = TABLE.select(["price"]).slice(0, rows)
        if ending == "parquet":
            pq.write_table(table, path)
        elif ending == "arrow":
            pyarrow.feather.write_feather(table, str(path), compression="uncompressed")
        else:
            pa.csv.write_csv(table, path)

    write(1000)
    dataset = ArrowDataset(path, mode="stream")
    list(dataset.loader())
    write(900)
    with pytest.raises(
        DataError, match=rf"houses.{ending} has changed since the data was looked at: it had"
    ):
        list(dataset.loader())
    write(1000)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))  # as large, written later
    with pytest.raises(DataError, match="has changed since"):
        list(dataset.loader())
    path.unlink()
    with pytest.raises(DataError, match=f"houses.{ending} has vanished since"):
        list(dataset.loader())


def test_a_codec_that_is_not_there(parquet: Path) -> None:
    """LZO stands in the format, but Arrow never had it: the footer is made to name it."""
    data = parquet.read_bytes()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    for place in range(start, len(data) - 9):
        if data[place : place + 2] != b"\x15\x02":  # field: i32, value 1: Snappy, or something else
            continue
        parquet.write_bytes(data[:place] + b"\x15\x06" + data[place + 2 :])
        try:
            if pq.read_metadata(parquet).row_group(0).column(0).compression == "LZO":
                break
        except (pa.ArrowException, OSError):
            continue
    else:
        pytest.fail("the codec was not found in the footer")
    refused("row group 0, column 'price' is compressed with LZO, which this pyarrow", parquet)


def test_text_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raylit.data.arrow import text

    monkeypatch.setattr(text, "BLOCK_BYTES", 40)
    path = tmp_path / "houses.csv"
    path.write_text("price\n" + "1\n" * 50 + "dear\n")
    with pytest.raises(
        DataError,
        match=r"houses.csv, block \d does not fit the columns.*dear.*types=\{'column': 'float64'\}",
    ):
        list(ArrowDataset(path).loader())
    path.write_text("price,cut\n1\n")
    refused("houses.csv is not understood as csv", path)
    refused("names no type of Arrow's", path, types={"price": "number"})
    lines = tmp_path / "houses.jsonl"
    lines.write_text('{"price": 1}\n{"price"\n')
    refused("houses.jsonl is not understood as json", lines)
    packed = tmp_path / "houses.csv.gz"
    packed.write_bytes(b"\x1f\x8b")
    refused("is compressed as a whole.*raylit data convert", packed)
    pq.write_table(TABLE, tmp_path / "houses.parquet")
    refused("is for CSV and JSON lines", tmp_path / "houses.parquet", types={"price": "float64"})


@pytest.mark.slow
def test_a_bucket_that_may_not_be_read(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refused("There is no .*/data.parquet|could not be looked at", f"{bucket}/data.parquet")
    refused("There is no|could not be looked at", "s3://no-such-bucket-anywhere/data.parquet")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    refused(
        "could not be looked at.*AWS_ACCESS_KEY_ID",
        f"{bucket}/data.parquet",
        storage_options={
            "config_kwargs": {"retries": {"max_attempts": 0}},
            "skip_instance_cache": True,
        },
    )


def test_columns_of_one_name(tmp_path: Path) -> None:
    twice = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], ["a", "a"])
    refused("The table has several columns named 'a'", twice)
    (tmp_path / "a.csv").write_text("a,a\n1,2\n")
    refused("a.csv has several columns named 'a'", tmp_path / "a.csv")


def test_an_empty_text_of_csv_is_a_null(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x,kind\n1,b\n2,\n3,NA\n")
    with pytest.raises(DataError, match="'kind' has 1 nulls"):
        next(iter(ArrowDataset(path, categories=["kind"]).loader(9)))
    read = ArrowDataset(path, categories=["kind"], nulls={"kind": 0})
    assert next(iter(read.loader(9)))["kind"].tolist() == [2, 0, 1]
    assert read.vocabulary == {"kind": ["NA", "b"]}


def test_json_that_is_one_array(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1},\n{"a": 2}]')
    refused("an object on each line", tmp_path / "a.json")


@pytest.mark.parametrize("ending", ["parquet", "csv", "arrow"])
def test_files_may_differ_in_columns_that_are_not_read(ending: str, tmp_path: Path) -> None:
    write = {
        "parquet": pq.write_table,
        "csv": pyarrow.csv.write_csv,
        "arrow": pyarrow.feather.write_feather,
    }[ending]
    write(pa.table({"b": [2.0], "a": [1.0], "c": ["x"]}), tmp_path / f"1.{ending}")
    write(pa.table({"a": [3.0], "c": [5]}), tmp_path / f"2.{ending}")
    refused("has 'b', .* does not.*in columns=", tmp_path)
    refused("has 'b', .* does not", tmp_path, columns=["a", "b"])
    refused("'c' is string in .* but int64", tmp_path, columns=["a", "c"])
    (batch,) = ArrowDataset(tmp_path, columns=["a"]).loader(9)
    assert batch["a"].tolist() == [1.0, 3.0]
