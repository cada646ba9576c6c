"""What a user sees on a terminal while the bar is up, as pyte, which emulates one, has it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pyte
import pytest

from raylit.callbacks.display.footer import Footer
from raylit.callbacks.display.screen import LiveScreen, PlainScreen, Shown, make_screen
from tests.deadlines import stretched

ROWS, COLUMNS = 24, 80
REPOSITORY = Path(__file__).parents[3]


class Terminal:
    """A terminal that programs write to and read from, and what stands on it.

    Attributes:
        stream: what a program has as its standard output.
    """

    def __init__(self) -> None:
        self._ours, theirs = pty.openpty()
        os.set_blocking(self._ours, False)
        self.stream: TextIO = os.fdopen(theirs, "w")
        self.screen = pyte.HistoryScreen(COLUMNS, ROWS, history=1000)
        self._feed = pyte.ByteStream(self.screen)
        self.resize(ROWS, COLUMNS)

    def resize(self, rows: int, columns: int) -> None:
        self.screen.resize(rows, columns)
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.stream.fileno(), termios.TIOCSWINSZ, size)

    def write(self, text: str) -> None:
        """Write as a library in C does, which knows of no stream of Python's."""
        os.write(self.stream.fileno(), text.encode())

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def read(self) -> bool:
        """Take what was written; tell whether there was any."""
        try:
            data = os.read(self._ours, 65536)
        except (BlockingIOError, OSError):
            return False
        self._feed.feed(data)
        return bool(data)

    def lines(self) -> list[str]:
        """Return the lines that are seen, without the empty ones at the end."""
        while self.read():
            pass
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def all_lines(self) -> list[str]:
        """Return also those that have scrolled away."""
        shown = self.lines()
        above = [
            "".join(line[column].data for column in range(COLUMNS)).rstrip()
            for line in self.screen.history.top
        ]
        return above + shown

    def close(self) -> None:
        self.stream.close()
        os.close(self._ours)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def shown(batch: int = 3, stage: str = "train", **more: object) -> Shown:
    return {
        "stage": stage,
        "epoch": 1,
        "max_epochs": 5,
        "batch": batch,
        "total": 10,
        "rate": 2.0,
        "left_s": 4.0,
        "fit_left_s": 100.0,
        "metrics": {"loss": 0.5} if stage == "train" else {},
        "is_last": False,
        **more,
    }


class TestFooter:
    def test_what_is_written_scrolls_above_it(self, terminal: Terminal) -> None:
        footer = Footer(terminal.stream)
        for number in range(100):
            footer.draw([f"first {number}", "second"])
            terminal.write(f"line {number}\n")
        lines = terminal.lines()
        assert lines[-2:] == ["first 99", "second"]
        assert lines[-4] == "line 99"
        footer.close(["last"])
        terminal.write("after\n")
        expected = [*(f"line {number}" for number in range(100)), "last", "after"]
        assert terminal.all_lines() == expected
        assert terminal.screen.margins is None

    def test_it_grows_and_shrinks(self, terminal: Terminal) -> None:
        footer = Footer(terminal.stream)
        for number in range(60):
            footer.draw([f"bar {row}" for row in range(1 + number % 4)])
            terminal.write(f"line {number}\n")
        assert terminal.lines()[-4:] == ["bar 0", "bar 1", "bar 2", "bar 3"]
        footer.close()
        lines = [line for line in terminal.all_lines() if line]
        assert lines == [f"line {number}" for number in range(60)]

    def test_a_line_that_has_no_end_stays(self, terminal: Terminal) -> None:
        footer = Footer(terminal.stream)
        terminal.write("loading ...")
        footer.draw(["bar"])
        terminal.write("^C")
        footer.close(["last"])
        assert terminal.lines() == ["loading ...", "^C", "last"]

    def test_colours_of_others_go_on(self, terminal: Terminal) -> None:
        footer = Footer(terminal.stream)
        terminal.write("\x1b[31mred ")
        footer.draw(["\x1b[32mbar\x1b[0m"])
        terminal.write("also")
        terminal.lines()
        row = terminal.screen.buffer[1]
        assert (row[0].data, row[0].fg) == ("a", "red")
        footer.close()

    @pytest.mark.parametrize("rows", [12, 40])
    def test_the_size_changes(self, terminal: Terminal, rows: int) -> None:
        footer = Footer(terminal.stream)
        for number in range(30):
            footer.draw(["bar"])
            terminal.write(f"line {number}\n")
        terminal.lines()
        terminal.resize(rows, COLUMNS)
        for number in range(30, 90):
            footer.draw(["bar"])
            terminal.write(f"line {number}\n")
        lines = terminal.lines()
        assert len(lines) == rows
        assert lines[-1] == "bar"
        assert lines[-3] == "line 89"
        footer.close()
        written = [line for line in terminal.all_lines() if line.startswith("line")]
        # pyte drops the lines that do not fit any more when it is made lower
        assert written[-60:] == [f"line {number}" for number in range(30, 90)]

    def test_a_terminal_that_is_too_low_shows_none(self, terminal: Terminal) -> None:
        terminal.resize(3, COLUMNS)
        footer = Footer(terminal.stream)
        footer.draw(["bar"])
        assert terminal.lines() == []
        terminal.resize(8, COLUMNS)
        footer.draw([f"bar {row}" for row in range(20)])
        assert terminal.lines()[-4:] == ["bar 0", "bar 1", "bar 2", "bar 3"]
        footer.close()

    def test_a_terminal_that_is_closed_ends_no_training(self) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        stream = os.fdopen(theirs, "w")
        footer = Footer(stream)
        footer.draw(["bar"])
        os.close(ours)
        for _ in range(3):
            footer.draw(["bar"])
        footer.close(["last"])
        with pytest.raises(OSError):
            os.write(stream.fileno(), b"indeed")
        os.close(stream.fileno())


class TestScreen:
    def test_bar_time_and_metrics(self, terminal: Terminal) -> None:
        screen = LiveScreen(Footer(terminal.stream))
        screen.show(shown(metrics={"loss": 0.5, "acc": 0.25}))
        bar, below = terminal.lines()[-2:]
        assert re.fullmatch(r"epoch 2/5 [━╸╺]+ +3/10 0:00:00 2.0 it/s", bar), bar
        assert below == "0:04 left, 1:40 of the fit  loss 0.5  acc 0.25"
        screen.show(shown(2, "validate", fit_left_s=None))
        assert [line.split()[0] for line in terminal.lines()[-3:]] == [
            "epoch",
            "validation",
            "0:04",
        ]
        screen.show(shown(10, "validate", fit_left_s=None, is_last=True))
        screen.show(shown(10, is_last=True))
        bar, below = terminal.lines()[-2:]
        assert bar.startswith("epoch 2/5") and "10/10" in bar
        assert below == "1:40 left of the fit  loss 0.5"
        screen.close()
        assert terminal.lines()[-2:] == [bar, below]

    def test_many_metrics_are_in_several_lines_and_none_is_wider(self, terminal: Terminal) -> None:
        metrics = {f"metric_{number}": number / 10 for number in range(12)}
        screen = LiveScreen(Footer(terminal.stream))
        for number in range(30):
            screen.show(shown(metrics=metrics))
            terminal.write(f"line {number}\n")
        text = " ".join(terminal.lines()[-4:])
        assert all(f"{name} {value:.4g}" in text for name, value in metrics.items())
        screen.close()
        written = [line for line in terminal.all_lines() if line.startswith("line")]
        assert written == [f"line {number}" for number in range(30)]

    def test_it_moves_only_when_it_is_shown_something(self, terminal: Terminal) -> None:
        screen = LiveScreen(Footer(terminal.stream))
        screen.show(shown())
        terminal.lines()
        time.sleep(0.3)
        assert not terminal.read()
        screen.close()

    @pytest.mark.parametrize(
        ("variables", "is_live"),
        [
            ({}, True),
            ({"CI": "false"}, True),
            ({"TERM": "dumb"}, False),
            ({"TERM": ""}, False),
            ({"INSIDE_EMACS": "29.1,comint"}, False),
            ({"CI": "true"}, False),
            ({"RAYLIT_PROGRESS": "plain"}, False),
            ({"RAYLIT_PROGRESS": "rich", "CI": "1"}, True),
        ],
    )
    def test_where_a_bar_is_drawn(
        self,
        terminal: Terminal,
        monkeypatch: pytest.MonkeyPatch,
        variables: dict[str, str],
        is_live: bool,
    ) -> None:
        for name in ("CI", "INSIDE_EMACS", "RAYLIT_PROGRESS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm-256color")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", terminal.stream)
        screen = make_screen()
        assert isinstance(screen, LiveScreen if is_live else PlainScreen)
        screen.show(shown(10, is_last=True))
        screen.close()
        while terminal.read():
            pass
        line = terminal.lines()[0]
        assert ("━" in line) is is_live
        assert line.startswith("epoch 2/5")

    def test_lines_where_the_size_is_not_known_or_there_is_no_terminal(
        self, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("RAYLIT_PROGRESS", "rich")
        fcntl.ioctl(terminal.stream.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
        monkeypatch.setattr(sys, "stdout", terminal.stream)
        assert isinstance(make_screen(), PlainScreen)
        with open(tmp_path / "log", "w") as log:
            monkeypatch.setattr(sys, "stdout", log)
            assert isinstance(make_screen(), PlainScreen)


SCRIPT = """
import logging, os, subprocess, sys, time, warnings
logging.basicConfig(format="%(message)s")
out = logging.getLogger("out")
out.addHandler(logging.StreamHandler(sys.stdout))
out.propagate = False
import torch
import raylit as pl
from torch.utils.data import DataLoader, TensorDataset

class Talks(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        time.sleep(0.03)
        number = 100 * self.current_epoch + batch_idx
        logging.warning("stderr handler %d", number)
        out.warning("stdout handler %d", number)
        print("printed", number)
        os.write(2, f"from C {number}\\n".encode())
        if batch_idx == 5:
            warnings.warn(f"warned {number}")
            subprocess.run(["echo", "another program", str(number)])
        if number == 110:
            breakpoint()
        if number == 112:
            print("hello", input("who? "))
        loss = self.net(batch[0]).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        time.sleep(0.03)
        self.print("validated", batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)

data = DataLoader(TensorDataset(torch.ones(20, 4)), 1)
trainer = pl.Trainer(
    max_epochs=2,
    limit_val_batches=5,
    logger=False,
    enable_checkpointing=False,
    enable_model_summary=False,
)
trainer.fit(Talks(), data, data)
print("the end")
"""


@pytest.mark.slow
def test_a_fit(terminal: Terminal, tmp_path: Path) -> None:
    """All that its user's code writes is seen, in order, and the bar waits for a debugger."""
    unset = ("RAYLIT_PROGRESS", "CI", "INSIDE_EMACS")
    env = {name: value for name, value in os.environ.items() if name not in unset}
    env |= {"TERM": "xterm", "PYTHONPATH": str(REPOSITORY), "PYTHONBREAKPOINT": "pdb.set_trace"}
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdin=terminal.stream,
        stdout=terminal.stream,
        stderr=terminal.stream,
        env=env,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + stretched(60)
    bars = set[str]()

    def wait_for(text: str) -> list[str]:
        while True:
            lines = terminal.lines()
            bars.update(line for line in lines[-3:] if line.startswith("epoch"))
            if any(text in line for line in lines):
                return lines
            ended = process.poll() is not None and not terminal.read()
            assert not ended and time.monotonic() < deadline, "\n".join(lines)
            time.sleep(0.05)

    def stands_still_at(prompt: str) -> None:
        before = wait_for(prompt)
        assert re.match(r"epoch \d/2 ━", before[-2]), before
        assert re.search(r"\d:\d\d left.*  loss \d", before[-1]), before
        time.sleep(1)
        assert terminal.lines() == before

    try:
        stands_still_at("(Pdb)")
        terminal.type("p 6 * 7\n")
        wait_for("42")
        terminal.type("c\n")
        stands_still_at("who?")
        terminal.type("Ada\n")
        wait_for("the end")
        assert process.wait(timeout=stretched(60)) == 0
    finally:
        process.kill()
        process.wait()

    lines = terminal.all_lines()
    assert len(bars) > 1, "it is drawn more than once"
    assert "hello Ada" in lines
    kinds = ["stderr handler", "stdout handler", "printed", "from C"]
    written = [
        f"{kind} {100 * epoch + batch}"
        for epoch in range(2)
        for batch in range(20)
        for kind in kinds
    ]
    assert [line for line in lines if re.fullmatch(rf"({'|'.join(kinds)}) \d+", line)] == written
    assert [line for line in lines if line.startswith("another program")] == [
        "another program 5",
        "another program 105",
    ]
    assert sum("UserWarning: warned" in line for line in lines) == 2
    assert [line for line in lines if line.startswith("validated")] == [
        f"validated {batch}" for batch in [0, 1, *range(5), *range(5)]
    ]
    bar, metrics, end = lines[-3:]
    assert re.match(r"epoch 2/2 ━+ 20/20 ", bar), lines[-3:]
    assert metrics.startswith("loss "), metrics
    assert end == "the end"
    assert terminal.screen.margins is None
