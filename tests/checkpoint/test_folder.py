"""Files and links of checkpoints, on the local disk and behind a URL."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fsspec
import pytest

from raylit.checkpoint import folder


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        folder.absolute("~/a/../b")
        == folder.absolute(Path("b"))
        == os.path.realpath(tmp_path / "b")
    )
    assert folder.absolute("s3://a/../b") == "s3://a/../b"
    assert folder.absolute(f"file://{tmp_path}/b") == os.path.realpath(tmp_path / "b")


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: Any, tmp_path: Path) -> str:
    """A folder with the checkpoint `one.ckpt` and the sharded one `two.ckpt`.

    The former holds `1`; the latter is a folder that holds `2` in `part`.
    """
    root = {"local": str(tmp_path), "memory": f"memory://{tmp_path.name}"}.get(
        request.param
    ) or request.getfixturevalue("bucket")
    for path, text in (("one.ckpt", "1"), ("two.ckpt/part", "2")):
        with fsspec.open(f"{root}/{path}", "w") as file:
            file.write(text)
    return root


def read(path: str) -> str:
    with fsspec.open(path) as file:
        return str(file.read().decode())


def names(place: str) -> list[str]:
    return sorted(
        str(name["name"] if isinstance(name, dict) else name).rsplit("/", 1)[-1]
        for name in folder.listing(place)
    )


def test_what_there_is(place: str) -> None:
    assert names(place) == ["one.ckpt", "two.ckpt"]
    assert folder.listing(f"{place}/none") == []
    assert [folder.exists(f"{place}/{name}") for name in ("one.ckpt", "two.ckpt", "none")] == [
        True,
        True,
        False,
    ]


def test_removing(place: str) -> None:
    for name in ("one.ckpt", "two.ckpt", "none"):
        folder.remove(f"{place}/{name}")
        assert not folder.exists(f"{place}/{name}")


@pytest.mark.parametrize("symbolic", [False, True])
def test_a_second_name_is_the_same_checkpoint(place: str, symbolic: bool) -> None:
    folder.give_second_name(f"{place}/one.ckpt", f"{place}/last.ckpt", symbolic=symbolic)
    assert read(f"{place}/last.ckpt") == "1"
    assert names(place) == ["last.ckpt", "one.ckpt", "two.ckpt"], "nothing temporary is left"
    with fsspec.open(f"{place}/three.ckpt", "w") as file:
        file.write("3")
    folder.give_second_name(f"{place}/three.ckpt", f"{place}/last.ckpt", symbolic=symbolic)
    assert (read(f"{place}/last.ckpt"), read(f"{place}/one.ckpt")) == (
        "3",
        "1",
    ), "the name moves, what it named stays"


def test_a_hard_link_outlives_the_first_name_and_a_symbolic_one_can_be_moved_along(
    tmp_path: Path,
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here/one.ckpt").write_text("1")
    folder.give_second_name(str(tmp_path / "here/one.ckpt"), str(tmp_path / "here/hard.ckpt"))
    folder.give_second_name(
        str(tmp_path / "here/one.ckpt"), str(tmp_path / "here/soft.ckpt"), symbolic=True
    )
    (tmp_path / "here").rename(tmp_path / "there")
    assert (tmp_path / "there/soft.ckpt").read_text() == "1"
    folder.remove(str(tmp_path / "there/one.ckpt"))
    assert (tmp_path / "there/hard.ckpt").read_text() == "1"
    assert folder.exists(str(tmp_path / "there/soft.ckpt")), "a link to nowhere takes its name"
    folder.remove(str(tmp_path / "there/soft.ckpt"))
    assert os.listdir(tmp_path / "there") == ["hard.ckpt"]


def test_a_folder_gets_a_second_name_too(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text(name)
    for name in ("a", "b"):
        folder.give_second_name(str(tmp_path / name), str(tmp_path / "last"))
        assert (tmp_path / "last/part").read_text() == name
    folder.give_second_name(str(tmp_path / "a"), str(tmp_path / "a"))
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "last"]
