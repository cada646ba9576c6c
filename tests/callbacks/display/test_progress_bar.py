"""What a user sees while a run goes on, on a terminal and without one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import raylit as pl
from raylit.callbacks import Bar, ProgressBar, RichProgressBar, TQDMProgressBar
from raylit.callbacks.display.screen import PlainScreen, clock, count, heading
from raylit.errors import ConfigError
from raylit.testing import BoringModel, RandomDataset, TinyModel


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
    assert re.search(r"it/s  \d:\d\d left of the fit  ", lines[0]), lines
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
        "left_s": None,
        "fit_left_s": None,
        "metrics": {"loss": 0.5},
        "is_last": False,
    }
    screen.show(shown)
    assert capsys.readouterr().out == "epoch 1 5/?  2.0 it/s  loss=0.5\n"
    assert (heading({**shown, "stage": "sanity_check"}), count({**shown, "total": 9})) == (
        "sanity check",
        "5/9",
    )
    screen.show({**shown, "stage": "validate", "metrics": {}, "total": 9, "left_s": 2.0})
    assert capsys.readouterr().out == "validation 5/9  2.0 it/s  0:02 left\n"


def test_the_time_that_is_left_of_a_fit() -> None:
    def left_s(took_s: float, total: float = 10, **limits: Any) -> float | None:
        """Return what a bar expects after 10 batches of the first epoch, which took `took_s`."""
        bar = ProgressBar()
        bar._batches, bar._fit_steps = 10, -10
        return bar._fit_left_s(pl.Trainer(logger=False, **limits), 10, total, took_s)

    assert left_s(20, max_epochs=11) == pytest.approx(200)
    assert left_s(20, max_epochs=11, max_steps=30) == pytest.approx(60)
    assert left_s(20, max_epochs=11, max_time="00:00:02:00") == pytest.approx(120)
    assert left_s(20, max_epochs=1) == 0
    assert left_s(20, max_epochs=-1) is None
    assert left_s(20, max_epochs=11, total=float("inf")) is None


@pytest.mark.parametrize(
    ("time_s", "text"),
    [(0.4, "0:00"), (61, "1:01"), (3599.6, "1:00:00"), (40 * 3600, "40:00:00"), (1e6, "12 days")],
)
def test_times_are_read_at_a_glance(time_s: float, text: str) -> None:
    assert clock(time_s) == text


def test_an_unknown_look_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYLIT_PROGRESS", "foo")
    with pytest.raises(ConfigError, match="RAYLIT_PROGRESS=foo is none of rich, plain, none"):
        pl.Trainer(max_epochs=1)


def test_the_sanity_check_of_several_ranks_counts_what_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAYLIT_PROGRESS", "plain")
    loader = DataLoader(RandomDataset(32, 40), batch_size=4)  # five batches for each rank
    trainer = pl.Trainer(
        accelerator="cpu",
        num_workers=2,
        launcher="local",
        max_steps=1,
        limit_val_batches=5,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(BoringModel(), loader, loader)
    assert "sanity check 2/2" in capfd.readouterr().out
