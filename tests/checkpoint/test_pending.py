from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from raylit.checkpoint import folder, pending


@pytest.fixture
def written() -> Iterator[Future[None]]:
    future: Future[None] = Future()
    pending.begin("new.ckpt", future)
    yield future
    pending._writing.clear()


def test_nothing_is_deleted_before_the_new_one_is_on_the_disk(
    tmp_path: Path, written: Future[None]
) -> None:
    old, new, last = tmp_path / "old.ckpt", tmp_path / "new.ckpt", tmp_path / "last.ckpt"
    old.write_text("old")
    folder.give_second_name(str(new), str(last))
    folder.remove(str(old))
    assert old.exists() and not last.exists()
    assert folder.exists("new.ckpt"), "its name is taken"
    new.write_text("new")
    written.set_result(None)
    assert last.read_text() == "new" and not old.exists()
    pending.wait()
    assert not folder.exists("new.ckpt")


def test_if_the_new_one_cannot_be_written_the_old_one_stays(
    tmp_path: Path, written: Future[None]
) -> None:
    old = tmp_path / "old.ckpt"
    old.write_text("old")
    folder.remove(str(old))
    written.set_exception(OSError("no space left"))
    assert old.exists()
    pending.wait()
    assert str(pending.outcome("new.ckpt")) == "no space left"
    assert pending.outcome("new.ckpt") is None, "it is told once"


def test_with_nothing_pending_it_is_done_at_once(tmp_path: Path) -> None:
    old = tmp_path / "old.ckpt"
    old.write_text("old")
    folder.remove(str(old))
    assert not old.exists()
