"""Pictures and lines on their way from rank 0 to the notebook that started it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raylit.launch.processes.screen import SOCKET, SentScreen, drawing
from tests.deadlines import stretched

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process looks like the kernel of a notebook, whose cell takes lines."""
    kernel = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)  # type: ignore[arg-type]
    monkeypatch.setenv("RAYLIT_PROGRESS", "plain")


def picture(epoch: int) -> dict[str, Any]:
    """The last one of an epoch, which is always drawn."""
    return {
        "stage": "train",
        "epoch": epoch,
        "max_epochs": None,
        "batch": 4,
        "total": 4,
        "rate": 1.0,
        "left_s": 0.0,
        "fit_left_s": None,
        "metrics": {"größe": float("nan")},
        "is_last": True,
    }


def send(folder: Path) -> None:
    screen = SentScreen(folder)
    for number in range(1000):
        screen.print(f"line {number}")
    screen.show(picture(6))
    screen.close()
    screen.print("after the end of one stage")


def send_and_die(folder: Path) -> None:
    send(folder)
    os.kill(os.getpid(), signal.SIGKILL)


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "raylit-progress"]


@pytest.mark.usefixtures("notebook")
@pytest.mark.parametrize(("sends", "code"), [(send, 0), (send_and_die, -signal.SIGKILL)])
def test_all_that_rank_0_has_sent_is_drawn_in_its_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sends: Callable[[Path], None], code: int
) -> None:
    """Also what it sent last, if it ended at once."""
    with drawing(tmp_path) as is_drawn:
        assert is_drawn
        rank = FORK.Process(target=sends, args=(tmp_path,))
        rank.start()
        rank.join(stretched(30))
    assert rank.exitcode == code
    *lines, shown, last = capsys.readouterr().out.splitlines()
    assert lines == [f"line {number}" for number in range(1000)]
    assert shown == "epoch 7 4/4  1.0 it/s  größe=nan"
    assert last == "after the end of one stage"
    assert threads() == []


@pytest.mark.usefixtures("notebook")
def test_ranks_that_never_connect_are_not_waited_for(tmp_path: Path) -> None:
    with drawing(tmp_path) as is_drawn:
        assert is_drawn and threads()
    assert threads() == [] and not (tmp_path / SOCKET).exists()


@pytest.mark.usefixtures("notebook")
def test_an_exception_of_the_job_passes_and_the_next_job_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the same folder or another."""
    for number in range(2):
        with pytest.raises(KeyError, match="bad batch"), drawing(tmp_path):
            SentScreen(tmp_path).print(f"job {number}")
            raise KeyError("bad batch")
        assert threads() == []
    assert capsys.readouterr().out.splitlines() == ["job 0", "job 1"]


def test_on_a_terminal_rank_0_draws_by_itself(tmp_path: Path) -> None:
    with drawing(tmp_path) as is_drawn:
        assert not is_drawn
        assert list(tmp_path.iterdir()) == [] and threads() == []


@pytest.mark.usefixtures("notebook")
def test_who_wants_no_progress_is_sent_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYLIT_PROGRESS", "none")
    with drawing(tmp_path) as is_drawn:
        assert not is_drawn


@pytest.mark.usefixtures("notebook")
def test_a_folder_whose_name_is_too_long_for_a_socket_costs_the_picture_alone(
    tmp_path: Path,
) -> None:
    """Linux takes 107 bytes, and TMPDIR may be anything."""
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    with drawing(folder) as is_drawn:
        assert not is_drawn
        assert threads() == []


def draw_until_killed(folder: Path) -> None:
    with drawing(folder):
        (folder / "draws").touch()
        signal.pause()


@pytest.mark.usefixtures("notebook")
def test_rank_0_outlives_who_has_drawn_for_it(tmp_path: Path) -> None:
    """It is told to save and end for that; a picture must not come in between."""
    parent = FORK.Process(target=draw_until_killed, args=(tmp_path,))
    parent.start()
    waiting = threading.Event()
    while not (tmp_path / "draws").exists():
        assert parent.is_alive() and not waiting.wait(0.02)
    screen = SentScreen(tmp_path)
    screen.show(picture(0))
    parent.kill()
    parent.join(stretched(30))
    for epoch in range(3):
        screen.show(picture(epoch))
        screen.print("lost")
    with pytest.raises(OSError):  # one that comes later finds nobody
        SentScreen(tmp_path)
