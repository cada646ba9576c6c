"""`raylit data`: what it writes, says and refuses."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

import raylit as pl
from raylit.cli import main

from .conftest import environment, run_raylit

TABLE = pa.table(
    {"price": np.arange(5000) / 2, "cut": ["good", "bad"] * 2500,
     "when": pa.array(range(5000), pa.timestamp("s"))}
)  # fmt: skip


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    pa.csv.write_csv(TABLE, tmp_path / "houses.csv")
    return tmp_path / "houses.csv"


def convert(*args: Any) -> int:
    return main(["data", "convert", *map(str, args)])


def test_csv_to_parquet_and_ipc(
    csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet = tmp_path / "new" / "houses.parquet"
    assert convert(csv, parquet, "--row-group-size", 600) == 0
    assert "5,000 rows in 9 row groups" in capsys.readouterr().out
    assert pq.read_table(parquet).cast(TABLE.schema).equals(TABLE)  # which knows no whole seconds
    assert [pq.read_metadata(parquet).row_group(one).num_rows for one in range(9)] == [600] * 8 + [
        200
    ]
    arrow = tmp_path / "houses.arrow"
    assert convert(parquet, arrow, "--columns", "price,when") == 0
    assert pyarrow.feather.read_table(arrow).equals(
        pq.read_table(parquet).select(["price", "when"])
    )
    assert len(list(pl.ArrowDataset(arrow, mode="mapped").loader(1000))) == 5
    assert {one.name for one in tmp_path.iterdir()} == {"houses.csv", "new", "houses.arrow"}


def test_texts_that_a_data_set_cannot_stream(tmp_path: Path) -> None:
    """Compressed as a whole, and with line breaks in quotes: what its errors send here."""
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write('n,text\n1,"two\nlines"\n2,one\n')
    assert convert(tmp_path / "a.csv.gz", tmp_path / "a.parquet", "--type", "n=float64") == 0
    found = pq.read_table(tmp_path / "a.parquet")
    assert found["text"].to_pylist() == ["two\nlines", "one"] and found["n"].type == pa.float64()


def test_an_empty_text_is_a_null_as_in_the_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,text\n1,\n2,NA\n3,one\n")
    assert convert(tmp_path / "a.csv", tmp_path / "a.parquet") == 0
    assert pq.read_table(tmp_path / "a.parquet")["text"].to_pylist() == [None, "NA", "one"]


def test_folders_of_images(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((4, 6, 3), 40 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{number}.png")
    assert convert(tmp_path / "pictures", tmp_path / "bytes.parquet") == 0
    found = pq.read_table(tmp_path / "bytes.parquet")
    assert found["image"][0].as_py() == (tmp_path / "pictures" / "cat" / "0.png").read_bytes()
    assert found["path"].to_pylist()[3] == "dog/0.png"
    assert convert(tmp_path / "pictures", tmp_path / "tensors.parquet", "--image-size", "2x3") == 0
    dataset = pl.ArrowDataset(tmp_path / "tensors.parquet", columns=["image", "label"])
    batch = next(iter(dataset.loader(6)))
    assert batch["image"].shape == (6, 2, 3, 3) and batch["label"].tolist() == [1, 1, 1, 2, 2, 2]
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 40, 80] * 2
    (tmp_path / "pictures" / "cat" / "0.png").write_bytes(b"no image")
    assert convert(tmp_path / "pictures", tmp_path / "torn.parquet", "--image-size", "2x2") == 1
    assert not list(tmp_path.glob("torn*"))


def test_describe_says_what_becomes_of_each_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = TABLE.append_column("rooms", pa.array([None, 3] * 2500)).append_column(
        "tags", pa.array([[1.0]] * 5000)
    )
    table = table.append_column("kind", pa.array(["a", "b"] * 2500).dictionary_encode())
    pq.write_table(table, tmp_path / "houses.parquet", row_group_size=2000)
    assert main(["data", "describe", str(tmp_path / "houses.parquet")]) == 0
    line, _, *rows = capsys.readouterr().out.splitlines()
    assert "5,000 rows in 3 row groups of 1,000 to 2,000 rows, digest" in line
    told = {row.split()[0]: row for row in rows}
    assert "0 to 2499.5, mean 1249.75" in told["price"] and told["price"].endswith("float32")
    assert "categories=['cut']" in told["cut"] and "2 different" in told["cut"]
    assert told["when"].endswith("float64, seconds")
    assert "2,500" in told["rooms"] and "nulls={'rooms': ...} has to be said" in told["rooms"]
    assert "padded float32 and tags_length" in told["tags"]
    assert "2 values: a, b" in told["kind"] and "code int64, 0 to 2" in told["kind"]


def test_head(csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "head", str(csv), "-n", "2"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["price", "cut"],
        ["0", "good"],
        ["0.5", "bad"],
    ]
    assert main(["data", "head", str(csv), "--type", "price=string", "-n", "6000"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5001


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "say what to do. There are: convert, describe, head"),
        (["descibe"], 2, "Did you mean 'describe'?"),
        (["head"], 2, "the following arguments are required: source"),
        (["head", "houses.csv", "-n", "0"], 2, "at least 1"),
        (["describe", "hauses.csv"], 1, "There is no hauses.csv. Did you mean 'houses.csv'"),
        (["convert", "houses.csv", "out.txt"], 2, "what to write is told by its end"),
        (["convert", "houses.csv", "houses.arrow"], 2, "is there already. Give --force"),
        (["convert", "houses.csv", "a.parquet", "--columns", "prize"], 1, "Did you mean 'price'?"),
        (["convert", "houses.csv", "a.parquet", "--type", "price=number"], 1, "no type of Arrow's"),
        (["convert", "houses.csv", "a.parquet", "--compression", "zip"], 2, "--compression zip"),
        (["convert", "houses.csv", "a.parquet", "--row-group-size", "0"], 2, "at least 1"),
        (["convert", "houses.csv", "a.parquet", "--image-size", "big"], 2, "such as 64x64"),
        (["convert", "empty", "a.parquet"], 1, "holds no file to read"),
    ],
)  # fmt: skip
def test_what_is_refused(
    args: list[str], code: int, message: str, csv: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    monkeypatch.chdir(csv.parent)
    Path("houses.arrow").touch()
    Path("empty").mkdir()
    assert main(["data", *args]) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("a.parquet").exists()


@pytest.mark.parametrize(
    ("name", "metric", "at_least", "epochs"),
    [("diamonds", "val_error", 0.7, 2), ("digit_images", "val_acc", 0.9, 4)],
)
def test_the_examples_on_real_data_learn(
    name: str, metric: str, at_least: float, epochs: int, digits: Path
) -> None:
    config = f"configs/{name}.yaml"
    command = [sys.executable, "-m", f"examples.{name}"]
    written = subprocess.run(command, cwd=digits, env=environment(), capture_output=True, text=True)
    assert written.returncode == 0 and ".parquet: " in written.stdout, written.stderr
    done = run_raylit(digits, "fit", "--config", config, "--trainer.max_epochs", str(epochs))
    assert done.code == 0, done.err
    value = float(re.findall(rf"best {metric} +([0-9.]+)", done.out + done.err)[0])
    assert (1 - value if metric == "val_error" else value) > at_least


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "-h"]) == 0
    assert "raylit data convert SOURCE TARGET" in capsys.readouterr().out
