"""A folder takes the place of another without a moment in which there is none.

What killed processes have left is deleted, what living ones write is not.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raylit.checkpoint import folder, place


def made(path: Path, text: str) -> str:
    path.mkdir()
    (path / "file").write_text(text)
    return str(path)


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_takes_the_place_of_another(
    tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:  # as on file systems that cannot
        monkeypatch.setattr(place, "_exchange", lambda one, other: False)
    target = made(tmp_path / "last.ckpt", "old")
    place.put(made(tmp_path / ".last.ckpt.1.part", "new"), target)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert (tmp_path / "last.ckpt/file").read_text() == "new"


def test_if_it_cannot_be_renamed_the_other_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "_exchange", lambda one, other: False)
    target = made(tmp_path / "last.ckpt", "old")
    with pytest.raises(FileNotFoundError):
        place.put(str(tmp_path / ".last.ckpt.1.part"), target)
    assert (tmp_path / "last.ckpt/file").read_text() == "old"


@pytest.mark.parametrize("kind", ["part", "tmp"])
def test_what_was_moved_away_by_a_process_that_was_killed_gets_its_name_back(
    tmp_path: Path, kind: str
) -> None:
    made(tmp_path / f".last.ckpt.1a2b.{kind}.old", "old")
    if kind == "part":
        made(tmp_path / ".last.ckpt.1a2b.part", "new")
    else:
        (tmp_path / ".last.ckpt.1a2b.tmp").symlink_to("epoch=1.ckpt")
    folder.remove_unfinished(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert (tmp_path / "last.ckpt/file").read_text() == "old"


@contextmanager
def writing(tmp_path: Path) -> Iterator[int]:
    """A process that is in the middle of writing a file and a folder."""
    child = os.fork()
    if child == 0:
        try:
            kept = place.LockedFolder(str(tmp_path / ".a.ckpt.1.part"))
            with place.locked_file(str(tmp_path / ".b.ckpt.1.tmp")):
                time.sleep(600)
            kept.release(kept.path)
        finally:
            os._exit(1)
    try:
        while not (tmp_path / ".b.ckpt.1.tmp").exists():
            time.sleep(0.01)
        time.sleep(0.05)
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_what_is_being_written_is_left_alone_until_its_process_is_killed(tmp_path: Path) -> None:
    with writing(tmp_path):
        folder.remove_unfinished(str(tmp_path))
        assert len(list(tmp_path.iterdir())) == 2
    folder.remove_unfinished(str(tmp_path))
    assert not list(tmp_path.iterdir())
