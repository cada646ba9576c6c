"""What is said of a loop that does not come to its next batch, and of one that does nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.core.job import Job
from raylit.launch.on_ray import watchdog
from raylit.testing import TinyModel


class Lines(list[str]):
    """Where it is said."""

    say = list.append


class Slow(TinyModel):
    """Its second batch takes long."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1 and self.current_epoch == 0:
            time.sleep(1.5)  # this line is to be named
        return super().training_step(batch, batch_idx)


def test_without_a_time_given_it_is_only_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(watchdog.TIMEOUT_VARIABLE, raising=False)
    monkeypatch.setattr(watchdog, "TIMEOUT_S", 0.5)
    trainer = pl.Trainer(
        max_epochs=1,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model, lines = Slow(), Lines()
    with watchdog.Watchdog(Job("fit", trainer, model), lines, 3):  # type: ignore[arg-type]
        time.sleep(1.2)  # nothing has begun: nothing is odd
        assert lines == []
        trainer.fit(model)
    (line,) = lines
    assert line.startswith(
        "Rank 3 has not reached its next batch for 1 s. To have it stopped, and started again"
        " (max_failures), set RAYLIT_TIMEOUT_S"
    )
    assert "this line is to be named" in line
    assert trainer.global_step == 4
