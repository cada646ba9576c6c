"""What a worker prints, on its way to the driver."""

from __future__ import annotations

import io
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

from raylit.launch.on_ray.relay import LINE_CHARS, RemoteScreen, echoing


class Screen(RemoteScreen):
    """Keeps the lines, in the place of a mailbox in another process."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, text: str) -> None:
        self.lines.append(text)


def printed(monkeypatch: Any, *texts: str, rank: int = 0) -> tuple[list[str], str]:
    """Return what is sent of texts that are printed one after another, and what the log gets."""
    log = io.StringIO()
    monkeypatch.setattr("sys.stdout", log)
    screen = Screen()
    with echoing(screen, rank):
        for text in texts:
            print(text, end="")
    return screen.lines, log.getvalue()


def test_complete_lines_are_sent_and_what_has_no_end_at_the_end(monkeypatch: Any) -> None:
    assert printed(monkeypatch, "one\ntw", "o\n", "\n", "three") == (
        ["one", "two", "", "three"],
        "one\ntwo\n\nthree",
    )
    assert printed(monkeypatch, "one\n", rank=2)[0] == ["[rank 2] one"]


def test_of_a_line_that_is_drawn_again_its_last_state_is_sent(monkeypatch: Any) -> None:
    assert printed(monkeypatch, "1%\r", "2%\r", "3%\n")[0] == ["3%"]
    assert printed(monkeypatch, "\r1%", "\r2%", "\n")[0] == ["2%"]
    assert printed(monkeypatch, "a\r\nb\r", "\n")[0] == ["a", "b"]


def test_long_lines_are_bounded_and_cost_no_more_than_they_are_long(monkeypatch: Any) -> None:
    began = time.process_time()
    lines, log = printed(monkeypatch, *(f"\r{number} {'#' * 60}" for number in range(20_000)))
    assert lines == [f"19999 {'#' * 60}"]
    assert len(log) > 20_000 * 60
    assert printed(monkeypatch, *["x" * 1000] * 2000)[0] == ["x" * LINE_CHARS]
    # 17 s before, when each update was searched from the line's beginning; 0.03 s now
    assert time.process_time() - began < 5


def test_processes_that_are_forked_are_heard(monkeypatch: Any) -> None:
    log = io.StringIO()
    monkeypatch.setattr("sys.stdout", log)
    screen = Screen()
    with echoing(screen, 1):
        print("begun", end="")
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=lambda: print("of a worker of a loader", flush=True))
        child.start()
        child.join()
    assert sorted(screen.lines) == ["[rank 1] begun", "[rank 1] of a worker of a loader"]


def test_what_a_forked_process_writes_after_the_job_goes_nowhere(tmp_path: Path) -> None:
    """A handler of logging keeps the stream that it was made with, from one job to the next."""
    with echoing(Screen(), 1):
        kept = sys.stdout
    files = [open(tmp_path / str(number), "wb") for number in range(8)]  # noqa: SIM115
    try:
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=lambda: print("of a loader", file=kept, flush=True))
        child.start()
        child.join()
    finally:
        for file in files:
            file.close()
    assert not any(path.stat().st_size for path in tmp_path.iterdir())
