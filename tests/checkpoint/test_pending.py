from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
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


def test_what_a_save_entails_is_done_in_order_and_waited_for(written: Future[None]) -> None:
    """However long each thing takes, and whoever does it."""
    done: list[str] = []

    def slowly(name: str) -> Callable[[], None]:
        def act() -> None:
            time.sleep(0.2)
            done.append(name)

        return act

    pending.when_written(slowly("second name"))
    pending.when_written(slowly("deletion"))
    writer = threading.Thread(target=lambda: written.set_result(None))
    writer.start()
    while not written.done():
        time.sleep(0.01)
    pending.when_written(slowly("later"))
    pending.wait()
    assert done == ["second name", "deletion", "later"]
    pending.when_written(lambda: done.append("at once"))
    assert done[-1] == "at once"
    writer.join()


def test_what_cannot_be_done_then_is_told_once(tmp_path: Path, written: Future[None]) -> None:
    folder.give_second_name(str(tmp_path / "missing.ckpt"), str(tmp_path / "last.ckpt"))
    written.set_result(None)
    (text,) = pending.failures()
    assert "missing.ckpt could not also be called" in text
    assert pending.failures() == []


def test_nothing_follows_a_save_that_has_failed_already(
    tmp_path: Path, written: Future[None]
) -> None:
    old = tmp_path / "old.ckpt"
    old.write_text("old")
    written.set_exception(OSError("no space left"))
    folder.remove(str(old))
    assert old.exists()


def test_with_nothing_pending_it_is_done_at_once(tmp_path: Path) -> None:
    old = tmp_path / "old.ckpt"
    old.write_text("old")
    folder.remove(str(old))
    assert not old.exists()
