"""Where rows come from: formats, folders, globs, partitions, URLs, filters and tables.

And what identifies them.
"""

from __future__ import annotations

import os
import pickle
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch

from raylit.data.arrow import ArrowDataset
from raylit.data.arrow.loader import _Blocks
from raylit.errors import ConfigError
from tests.buckets import gcs_server
from tests.lazy import pandas

TABLE = pa.table({"row": np.arange(40), "x": np.arange(40) / 4})


def write(table: pa.Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=7)
    elif path.suffix == ".arrow":
        pyarrow.feather.write_feather(table, str(path), compression="uncompressed", chunksize=7)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, str(path), compression="zstd", chunksize=7)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        path.write_text("\n".join(pandas.Series(row).to_json() for row in table.to_pylist()) + "\n")
    return path


def rows(source: Any, mode: str = "auto", **options: Any) -> list[int]:
    dataset = ArrowDataset(source, mode=mode, **options)
    batches = list(dataset.loader(6))
    for batch in batches:
        assert torch.equal(batch["x"], batch["row"] / 4)
    found = [row for batch in batches for row in batch["row"].tolist()]
    assert len(found) == len(dataset)
    return found


def test_only_what_lies_as_it_is_read_is_mapped(tmp_path: Path) -> None:
    """Whatever other threads take of Arrow's memory at the time."""
    plain = write(TABLE, tmp_path / "rows.arrow")
    noise = np.random.default_rng(0).integers(0, 2**63, 4096)
    packed = str(tmp_path / "packed.arrow")  # what cannot be made smaller is kept as it is
    table = pa.table({"row": noise, "same": np.zeros(4096)})
    pyarrow.feather.write_feather(table, packed, compression="lz4")
    ended = threading.Event()

    def take() -> None:
        while not ended.is_set():
            held = [pa.allocate_buffer(1 << 12) for _ in range(1000)]
            held.clear()

    thread = threading.Thread(target=take)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for _ in range(50):
            assert len(ArrowDataset(plain, mode="mapped")) == 40
            with pytest.raises(ConfigError, match="uncompressed Arrow IPC"):
                ArrowDataset(packed, mode="mapped")
    finally:
        sys.setswitchinterval(interval)
        ended.set()
        thread.join()


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather", "csv", "jsonl"])
def test_each_format_in_each_mode(ending: str, tmp_path: Path) -> None:
    path = write(TABLE, tmp_path / f"rows.{ending}")
    for mode in ("memory", "stream", *(["mapped"] if ending == "arrow" else [])):
        assert rows(path, mode) == list(range(40))
        if mode != "mapped":
            assert rows(str(path), mode, filters=[("row", ">", 30)]) == list(range(31, 40))


def test_folders_globs_and_lists(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "deep").mkdir(exist_ok=True)
        folder = tmp_path / "deep" if number == 2 else tmp_path
        write(TABLE.slice(number * 10, 10), folder / f"p{number}.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / ".hidden.parquet").write_text("torn")
    (tmp_path / "README.md").write_text("words")
    for hidden in ("_delta_log", ".raylit", "deep/_temporary"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "0.json").write_text("{}")
    assert sorted(rows(tmp_path)) == list(range(30))
    assert rows(str(tmp_path / "p*.parquet")) == list(range(20))
    assert rows([tmp_path / "p1.parquet", tmp_path / "p0.parquet"]) == [*range(10, 20), *range(10)]
    assert rows(f"file://{tmp_path}/p1.parquet") == list(range(10, 20))
    write(TABLE.slice(0, 5), tmp_path / ".raylit" / "p0.parquet")
    write(TABLE.slice(5, 5), tmp_path / ".raylit" / "p1.parquet")
    assert rows(str(tmp_path / ".raylit" / "p*.parquet")) == list(range(10)), "it was named"
    shutil.copy(tmp_path / "p0.parquet", tmp_path / "p0.data")
    assert rows(tmp_path / "p0.data", format="parquet") == list(range(10))


@pytest.mark.parametrize("ending", ["parquet", "arrow", "csv"])
def test_folders_partitioned_as_hive_does(ending: str, tmp_path: Path) -> None:
    for year in (2023, 2024):
        for land in ("de", "fr"):
            folder = tmp_path / f"year={year}" / f"land={land}"
            folder.mkdir(parents=True)
            write(TABLE.slice(0 if year == 2023 else 20, 5), folder / f"a.{ending}")
    dataset = ArrowDataset(tmp_path, categories=["land"])
    batch = next(iter(dataset.loader(20)))
    assert batch["year"].tolist() == [2023] * 10 + [2024] * 10
    assert batch["land"].tolist() == ([1] * 5 + [2] * 5) * 2 and dataset.vocabulary["land"] == [
        "de",
        "fr",
    ]
    later = ArrowDataset(
        tmp_path, columns=["row"], filters=[("year", "=", 2024), ("land", "=", "fr")]
    )
    assert next(iter(later.loader(20)))["row"].tolist() == list(range(20, 25))


def test_filters_are_expressions_or_tuples(tmp_path: Path) -> None:
    path = write(TABLE, tmp_path / "rows.parquet")
    expression = (
        (pc.field("row") % 2 == 0)
        if hasattr(pc.Expression, "__mod__")
        else pc.field("row").isin([0, 2, 4])
    )
    dataset = ArrowDataset(path, filters=expression, columns=["x"])
    assert len(dataset) == len(list(dataset.loader(1)))
    assert rows(path, filters=[[("row", "<", 2)], [("row", "==", 9)]]) == [0, 1, 9]
    assert rows(path, filters=[["row", "<", 9], ["x", ">", 1.5]]) == [7, 8]  # as YAML has them
    assert rows(path, filters=[[["row", "<", 1]], [["row", "==", 9], ["x", ">", 0]]]) == [0, 9]
    assert rows(path, "stream", filters=[("x", ">=", 9.0), ("row", "in", {37, 39, 2})]) == [37, 39]


def test_tables_and_frames() -> None:
    assert rows(TABLE) == list(range(40))
    assert rows(TABLE.to_batches()[0]) == list(range(40))
    assert rows(TABLE.to_pandas()) == list(range(40))
    assert rows(TABLE, "stream", filters=pc.field("row") > 35) == [36, 37, 38, 39]

    class Frame:
        """A frame of a package that speaks Arrow's protocol, as polars' do."""

        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            return TABLE.__arrow_c_stream__(requested_schema)

    assert rows(Frame()) == list(range(40))


@pytest.mark.parametrize("place", ["table", "rows.arrow", "rows.parquet"])
@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_views_are_read_as_what_they_show(tmp_path: Path, place: str, mode: str) -> None:
    """polars gives its strings, bytes and lists as views."""
    words = [str(row % 3) for row in range(40)]
    lists: list[Any] = [[row] * (row % 4) for row in range(40)]
    plain = TABLE.append_column("word", pa.array(words)).append_column("list", pa.array(lists))
    codes = pa.array([row % 3 for row in range(40)], pa.uint32())
    views = TABLE.append_column("word", pa.array(words, pa.string_view()))
    views = views.append_column("list", pa.array(lists, pa.list_view(pa.int64())))
    if place != "rows.parquet":  # which stores neither of them
        kinds = pa.array(["0", "1", "2"], pa.string_view())
        views = views.append_column("kind", pa.DictionaryArray.from_arrays(codes, kinds))
    else:
        views = views.drop_columns("list").append_column("list", plain["list"])
        views = views.append_column("kind", pa.array(words, pa.string_view()))
    plain = plain.append_column("kind", pa.array(words))
    try:
        source = views if place == "table" else write(views, tmp_path / place)
    except pa.ArrowNotImplementedError:
        if int(pa.__version__.partition(".")[0]) >= 21:
            raise
        pytest.skip("this pyarrow, older than 21, writes no views to Parquet")

    def batch(source: Any) -> dict[str, Any]:
        dataset = ArrowDataset(
            source, mode=mode, categories=["word", "kind"], filters=[("word", "!=", "2")]
        )
        return next(iter(dataset.loader(40)))

    found = batch(source)
    for name, expected in batch(plain).items():
        assert torch.equal(found[name], expected), name


def test_a_large_text_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raylit.data.arrow import text

    monkeypatch.setattr(text, "BLOCK_BYTES", 100)
    for ending in ("csv", "jsonl"):
        path = write(TABLE, tmp_path / f"rows.{ending}")
        with open(path, "a") as file:
            file.write("\n")  # an empty line is no row
        dataset = ArrowDataset(path, mode="stream")
        assert len(dataset.source.pieces) > 2
        assert rows(path, "stream") == list(range(40))
        shuffled = [
            row for batch in dataset.loader(6, shuffle=True) for row in batch["row"].tolist()
        ]
        assert sorted(shuffled) == list(range(40))


def test_csv_with_other_orders_of_columns_tabs_and_types(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,row\n0,0\n0.25,1\n")
    (tmp_path / "b.csv").write_text("row,x\n2,0.5\n")
    assert rows(tmp_path, types={"x": "float64"}) == [0, 1, 2]
    (tmp_path / "a.tsv").write_text("row\tx\r\n0\t0.0\r\n1\t0.25\r\n")
    assert rows(tmp_path / "a.tsv") == [0, 1]


def test_the_digest_is_that_of_what_the_files_hold(tmp_path: Path) -> None:
    path = write(TABLE, tmp_path / "rows.parquet")
    digest = ArrowDataset(path).digest
    (tmp_path / "copy").mkdir()
    shutil.copyfile(path, tmp_path / "copy" / "rows.parquet")  # with another time
    assert ArrowDataset(tmp_path / "copy").digest == digest
    assert ArrowDataset(path, filters=[("row", ">", 0)]).digest != digest
    changed = TABLE.set_column(1, "x", pa.array(np.arange(40) / 4 + (np.arange(40) == 39)))
    write(changed, path)
    assert ArrowDataset(path).digest != digest
    assert (
        ArrowDataset(TABLE).digest
        == ArrowDataset(pa.concat_tables([TABLE.slice(0, 3), TABLE.slice(3)])).digest
    )
    assert ArrowDataset(TABLE).digest != ArrowDataset(changed).digest


def test_a_data_set_goes_to_another_process(tmp_path: Path) -> None:
    for ending in ("parquet", "arrow", "csv"):
        dataset = ArrowDataset(write(TABLE, tmp_path / f"rows.{ending}"), filters=[("row", "<", 9)])
        list(dataset.loader(3))
        copy = pickle.loads(pickle.dumps(dataset))
        assert [one["row"].tolist() for one in copy.loader(5)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]
    assert rows(pickle.loads(pickle.dumps(ArrowDataset(TABLE))).source.table) == list(range(40))


def test_the_mode_is_chosen_by_size_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from raylit.data.arrow import dataset

    paths = [write(TABLE, tmp_path / name) for name in ("rows.parquet", "rows.arrow")]
    assert [ArrowDataset(path).mode for path in paths] == ["memory", "memory"]
    assert "40 rows" in (said := capfd.readouterr().err) and "less than half of the" in said
    monkeypatch.setattr(dataset, "free_bytes", lambda: 900)
    assert [ArrowDataset(path).mode for path in paths] == ["stream", "mapped"]
    assert "streamed (more than half of the 900 bytes that are free)" in capfd.readouterr().err
    monkeypatch.setattr(dataset, "free_bytes", lambda: 2000)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert ArrowDataset(paths[0]).mode == "stream"
    assert "shared by 4 ranks" in capfd.readouterr().err


def test_a_worker_process_reads_in_the_mode_of_its_loader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mode has another order, so that rows would be missing and others be there twice."""
    from raylit.data.arrow import dataset

    data = ArrowDataset(write(TABLE, tmp_path / "rows.parquet"))
    assert data.mode == "memory"
    blocks = _Blocks(data.loader(5, shuffle=True), data.layout)
    sent = pickle.dumps(blocks)
    monkeypatch.setattr(dataset, "free_bytes", lambda: 900)
    assert str(pickle.loads(sent)[0, 40]) == str(blocks[0, 40])


def test_a_stream_keeps_to_its_buffer(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"x": np.zeros(4000, np.float32)}), path, row_group_size=100)
    dataset = ArrowDataset(path, mode="stream", buffer_bytes=4 * 450)
    assert dataset.window_rows == 450
    reader: Any = dataset.loader(10, shuffle=True)._reader()
    sizes = [len(chunk) for chunk in reader.chunks(0, 4000)]
    assert max(sizes) == 400 and sum(sizes) == 4000
    with pytest.warns(
        UserWarning, match="shuffling mixes within single row groups only. Write smaller ones"
    ):
        ArrowDataset(path, mode="stream", buffer_rows=50)


@pytest.mark.slow
def test_a_bucket(bucket: str, tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("s3")
    for number in range(2):
        path = write(TABLE.slice(20 * number, 20), tmp_path / f"{number}.parquet")
        fs.put_file(str(path), f"{bucket}/data/{number}.parquet")
    assert rows(f"{bucket}/data") == list(range(40))
    assert rows(f"{bucket}/data/*.parquet", "stream") == list(range(40))
    dataset = ArrowDataset(f"{bucket}/data/1.parquet", mode="stream")
    found = [row for batch in dataset.loader(6, num_workers=2) for row in batch["row"].tolist()]
    assert found == list(range(20, 40))
    digest = dataset.digest
    fs.put_file(str(tmp_path / "0.parquet"), f"{bucket}/data/1.parquet")
    fs.invalidate_cache()
    assert ArrowDataset(f"{bucket}/data/1.parquet").digest != digest


def test_a_bucket_of_google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gcsfs = pytest.importorskip(
        "gcsfs", reason="it is no part of an environment of oldest versions"
    )
    path = write(TABLE, tmp_path / "rows.parquet")
    with gcs_server("tables") as address:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        gcsfs.GCSFileSystem.clear_instance_cache()
        gcsfs.GCSFileSystem(token="anon").put_file(str(path), "tables/data/rows.parquet")
        for mode in ("memory", "stream"):
            dataset = ArrowDataset("gs://tables/data", mode=mode, storage_options={"token": "anon"})
            found = [row for batch in dataset.loader(6) for row in batch["row"].tolist()]
            assert found == list(range(40))
        gcsfs.GCSFileSystem.clear_instance_cache()


def test_files_are_opened_after_a_fork(tmp_path: Path) -> None:
    """A process that has read, with Arrow's threads and open files, forks: the child reads too."""
    for ending, mode in (
        ("parquet", "stream"),
        ("arrow", "mapped"),
        ("arrow", "stream"),
        ("parquet", "memory"),
    ):
        dataset = ArrowDataset(write(TABLE, tmp_path / f"rows.{ending}"), mode=mode)
        assert len(list(dataset.loader(6))) == 7
        running = iter(dataset.loader(6))
        next(running)  # its thread reads on
        child = os.fork()
        if child == 0:
            found = [
                row for batch in dataset.loader(6, shuffle=True) for row in batch["row"].tolist()
            ]
            os._exit(0 if sorted(found) == list(range(40)) else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        list(running)
