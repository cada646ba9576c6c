"""What a user sees while a run goes on, on a terminal and without one."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import raylit as pl
from raylit.callbacks import Bar, ProgressBar, RichProgressBar, TQDMProgressBar
from raylit.callbacks.display.screen import PlainScreen, count, heading
from raylit.testing import TinyModel
from tests.deadlines import stretched


class Shown(TinyModel):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("steady", 0.25, prog_bar=True)
        loss: Tensor = super().training_step(batch, batch_idx)
        return loss


class Counting(ProgressBar):
    """Counts how often the metrics are looked at."""

    looks = 0

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        self.looks += 1
        return {**super().get_metrics(trainer, pl_module), "mine": 7}


def fit(folder: Path, **arguments: Any) -> pl.Trainer:
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    trainer = pl.Trainer(**{**settings, **arguments})
    torch.manual_seed(0)
    trainer.fit(Shown())
    return trainer


def test_without_a_terminal_one_line_for_each_epoch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert all(
        re.fullmatch(rf"epoch {number}/2 \d+/\d+  [\d.]+ it/s  .*steady=0\.25.*", line)
        for number, line in enumerate(lines, 1)
    ), lines
    assert not any(ord(character) < 32 for line in lines for character in line)


def test_nothing_is_shown_if_nobody_wants_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(tmp_path, callbacks=[ProgressBar(refresh_rate=0)])
    fit(tmp_path, enable_progress_bar=False)
    monkeypatch.setenv("RAYLIT_PROGRESS", "none")
    fit(tmp_path)
    assert "epoch" not in capsys.readouterr().out


def test_metrics_are_looked_at_by_the_clock_and_can_be_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bar = Counting(refresh_s=60)
    trainer = fit(tmp_path, callbacks=[bar], max_epochs=3)
    assert trainer.progress_bar_callback is bar
    assert trainer.global_step > 9
    assert bar.looks <= 3 + 1, "the end of each epoch, and the first batch"
    assert capsys.readouterr().out.count("mine=7") == 3


def test_module_prints_above_the_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Talks(Shown):
        def on_train_start(self) -> None:
            self.print("hello", 3)

    pl.Trainer(fast_dev_run=True, enable_model_summary=False, default_root_dir=tmp_path).fit(
        Talks()
    )
    assert "hello 3\n" in capsys.readouterr().out


def test_bars_by_lightnings_names() -> None:
    ours = RichProgressBar(leave=True, theme=None, console_kwargs={"stderr": True})
    assert isinstance(ours, ProgressBar)
    assert isinstance(ours, Bar)
    assert ours.leave
    assert isinstance(TQDMProgressBar(leave=True), Bar)
    assert TQDMProgressBar(refresh_rate=0).is_disabled


def test_a_long_epoch_is_told_of_in_between(capsys: pytest.CaptureFixture[str]) -> None:
    screen = PlainScreen(every_s=0)
    shown = {
        "stage": "train",
        "epoch": 0,
        "max_epochs": None,
        "batch": 5,
        "total": None,
        "rate": 2.0,
        "metrics": {"loss": 0.5},
        "is_last": False,
    }
    screen.show(shown)
    assert capsys.readouterr().out == "epoch 1 5/?  2.0 it/s  loss=0.5\n"
    assert (heading({**shown, "stage": "sanity_check"}), count({**shown, "total": 9})) == (
        "sanity check",
        "5/9",
    )


@pytest.mark.slow
def test_on_a_terminal_a_bar_and_the_metrics_below_it(tmp_path: Path) -> None:
    script = (
        "import raylit as pl; from tests.callbacks.display.test_progress_bar import fit; from pathlib"
        f" import Path;fit(Path({str(tmp_path)!r})); print('the end')"
    )
    ours, theirs = pty.openpty()
    env = os.environ | {
        "TERM": "xterm",
        "COLUMNS": "80",
        "PYTHONPATH": str(Path(__file__).parents[3]),
    }
    env.pop("RAYLIT_PROGRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    screen = b""
    while chunk := _read(ours):
        screen += chunk
    assert process.wait(timeout=stretched(60)) == 0, screen
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode())
    last = text[: text.index("the end")].splitlines()[-2:]
    assert re.match(r"epoch 2/2 ━+ +\d+/\d+ ", last[0]), last
    assert "steady 0.25" in last[1]
    assert screen.count(b"\x1b[?25l") == screen.count(b"\x1b[?25h") == 1, "the cursor is given back"


def _read(terminal: int) -> bytes:
    """Return what was written to the other end of a terminal, nothing once it is closed."""
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""
