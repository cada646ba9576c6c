from __future__ import annotations

import io
import os
import pickle
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raylit.checkpoint import load, plain_items, save, to_plain
from raylit.checkpoint.format import _CheckedFile, outline
from raylit.errors import CheckpointError

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(allow_nan=False),
    st.text(max_size=5),
)
PLAIN = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pieces_of_what_stands_before_the_data_are_no_data(tmp_path: Path) -> None:
    """Torch 2.6 reads some; of four bytes, a small tensor seemed to be damaged."""
    save({"small": torch.tensor(1.5), "large": torch.ones(64)}, tmp_path / "x.ckpt")
    with open(tmp_path / "x.ckpt", "rb") as file:
        for record in zipfile.ZipFile(file).infolist():
            checked = _CheckedFile(file)
            data = checked._data_of(record)
            for at in range(record.header_offset, data):
                checked.seek(at)
                assert checked.readinto(bytearray(record.file_size)) == record.file_size
                assert checked.damaged is None
            checked.seek(data)
            whole = bytearray(record.file_size)
            checked.readinto(whole)
            assert checked.damaged is None and checked.damaged_rest() is None
            assert bytes(whole) == zipfile.ZipFile(file).read(record)


@given(PLAIN)
def test_plain_data_comes_back_as_it_was(value: Any) -> None:
    assert to_plain(value) == value


def test_a_file_holds_what_was_saved(tmp_path: Path) -> None:
    saved = {
        "tensor": torch.arange(3),
        "nested": {"a": [1, (2.5, "x")], "none": None},
        "ordered": OrderedDict(b=1),
    }
    save(saved, tmp_path / "deep" / "er" / "one.ckpt")
    found = load(tmp_path / "deep" / "er" / "one.ckpt")
    assert torch.equal(found.pop("tensor"), saved.pop("tensor"))  # type: ignore[arg-type]
    assert found == saved
    assert os.listdir(tmp_path / "deep" / "er") == ["one.ckpt"], "no temporary file is left"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"x",
        bytes(range(256)),
        {b"": 1},
        set(),
        {1},
        1j,
        (),
        OrderedDict(),
        2**70,
        torch.Size([1]),
    ],
    ids=repr,
)
def test_a_file_with_it_opens(tmp_path: Path, value: Any) -> None:
    """Also with torch alone, which refuses a whole file for what it does not know."""
    save(plain_items({"value": value})[0], tmp_path / "one.ckpt")
    for found in (load(tmp_path / "one.ckpt"), torch.load(tmp_path / "one.ckpt")):
        assert found["value"] == value and type(found["value"]) is type(value)


def test_what_is_nearly_plain_is_made_plain() -> None:
    class Number(int):
        pass

    value = {
        "path": Path("a/b"),
        "numpy": np.float32(0.5),
        "number": Number(3),
        "set": frozenset({1}),
    }
    assert to_plain(value) == {"path": "a/b", "numpy": 0.5, "number": 3, "set": {1}}
    assert [type(item) for item in to_plain(value).values()] == [str, float, int, set]


def test_what_is_not_plain_is_named() -> None:
    kept, left_out = plain_items(
        {"a": 1, "b": object(), "c": [object()], "d": {"e": torch.nn.Linear(1, 1)}}
    )
    assert (kept, left_out) == ({"a": 1}, ["b", "c", "d"])
    with pytest.raises(TypeError, match=r"builtins\.object is not plain data"):
        to_plain(object())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1500))
def test_a_torn_file_is_refused(number: int) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"x": torch.zeros(50)}}, buffer)
    content = buffer.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.ckpt"
        path.write_bytes(content[: min(number, len(content) - 1)])
        with pytest.raises(CheckpointError, match=r"one\.ckpt"):
            load(path)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_is_found(position: int, bit: int) -> None:
    """Or does no harm: between the parts of the file are bytes that mean nothing."""
    buffer = io.BytesIO()
    torch.save({"state_dict": {"x": torch.arange(500.0)}, "epoch": 3}, buffer)
    content = bytearray(buffer.getvalue())
    content[position % len(content)] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.ckpt"
        path.write_bytes(content)
        try:
            loaded = load(path)
        except CheckpointError:
            return
    assert torch.equal(loaded["state_dict"]["x"], torch.arange(500.0)) and loaded["epoch"] == 3


@pytest.mark.parametrize("kind", [io.BytesIO, tempfile.SpooledTemporaryFile])
def test_a_file_is_read_once(kind: Any) -> None:
    """Its checksums are those of what is loaded; no second reading looks for them."""
    read = 0

    class Counted(kind):  # type: ignore[misc]
        def read(self, size: int = -1) -> bytes:
            return self.count(super().read(size))

        def count(self, data: bytes) -> bytes:
            nonlocal read
            read += len(data)
            return data

        def readinto(self, buffer: Any) -> int:
            data = self.read(len(buffer))
            buffer[: len(data)] = data
            return len(data)

    file = Counted()
    saved = {"weights": {str(number): torch.randn(1000) for number in range(200)}, "none": []}
    torch.save(saved, file)
    size = file.tell()
    loaded = load(file)
    assert torch.equal(loaded["weights"]["7"], saved["weights"]["7"])  # type: ignore[call-overload]
    assert size < read < 1.3 * size


def test_the_outline_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    save({"state_dict": {"x": torch.ones(2**20)}, "epoch": 3}, path)
    for place in (path, f"file://{path}", "memory://outline/one.ckpt"):
        if "memory" in str(place):
            save(load(path), place)
        found = outline(place)
        assert found["epoch"] == 3
        assert found["state_dict"]["x"].shape == (2**20,)
    torch.save([1], tmp_path / "list.ckpt")
    path.write_bytes(b"x")
    for damaged in (path, tmp_path / "list.ckpt"):
        with pytest.raises(CheckpointError, match=damaged.name):
            outline(damaged)


def test_loading_runs_no_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    torch.save({"state_dict": {}, "bomb": Bomb(made)}, tmp_path / "one.ckpt")
    (tmp_path / "raw.ckpt").write_bytes(pickle.dumps({"bomb": Bomb(made)}))
    for name in ("one.ckpt", "raw.ckpt"):
        with pytest.raises(CheckpointError, match="pass weights_only=False"):
            load(tmp_path / name)
    assert not made.exists()
    load(tmp_path / "one.ckpt", weights_only=False)
    assert made.exists(), "only who asks for it gets it"


def test_no_file_and_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        load(tmp_path / "none.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="holds a list, not a checkpoint"):
        load(tmp_path / "list.ckpt")


class Breaks:
    """Fails in the middle of being written."""

    def __reduce__(self) -> Any:
        raise RuntimeError("no space left")


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    save({"x": 1}, path)
    with pytest.raises(
        CheckpointError, match=r"no space left.*What stood there before is untouched"
    ):
        save({"x": Breaks()}, path)
    assert load(path) == {"x": 1}
    assert os.listdir(tmp_path) == ["one.ckpt"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Could not write the checkpoint"):
        save({"x": 1}, tmp_path / "file" / "one.ckpt")


def test_urls(tmp_path: Path) -> None:
    save({"x": torch.ones(2)}, "memory://folder/one.ckpt")
    assert torch.equal(load("memory://folder/one.ckpt")["x"], torch.ones(2))
