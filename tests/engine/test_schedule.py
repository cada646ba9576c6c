"""When training stops and when validation is due, by the batches at which it happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

import raylit as pl
from raylit.callbacks import Callback
from raylit.errors import Terminated
from raylit.testing import RandomDataset, TinyModel
from tests.quiet import BARE


class Notes(Callback):
    """Keeps the global step at every end of a validation."""

    def __init__(self) -> None:
        self.validated: list[int] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.validated.append(trainer.global_step)


class StopsAt(Notes):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


def fit(folder: Path, callback: Callback, batches: Any = 10, **arguments: Any) -> pl.Trainer:
    loader = DataLoader(RandomDataset(32, batches)) if isinstance(batches, int) else batches
    trainer = pl.Trainer(
        **{
            **BARE,
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "callbacks": [callback],
            "default_root_dir": folder,
            **arguments,
        }
    )
    trainer.fit(TinyModel(1), loader)
    return trainer


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [10, 20]),
        ({"val_check_interval": 4}, [4, 8, 14, 18]),
        ({"val_check_interval": 0.5}, [5, 10, 15, 20]),
        ({"val_check_interval": 0.34}, [3, 6, 9, 13, 16, 19]),
        ({"val_check_interval": 7, "check_val_every_n_epoch": None}, [7, 14]),
        ({"check_val_every_n_epoch": 2}, [20]),
        ({"check_val_every_n_epoch": 3}, []),
        ({"val_check_interval": {"seconds": 0}}, list(range(1, 21))),
        ({"val_check_interval": {"hours": 1}}, []),
        ({"limit_val_batches": 0}, []),
        ({"val_check_interval": 4, "max_steps": 6}, [4]),
    ],
)
def test_validation_is_due(tmp_path: Path, arguments: dict[str, Any], expected: list[int]) -> None:
    notes = Notes()
    fit(tmp_path, notes, **arguments)
    assert notes.validated == expected


@pytest.mark.parametrize(
    ("arguments", "steps", "epochs"),
    [
        ({}, 3, 1),
        ({"min_steps": 7}, 10, 1),  # min_steps makes min_epochs 1, as in Lightning
        ({"min_steps": 7, "min_epochs": 0}, 7, 1),
        ({"min_epochs": 2, "max_epochs": 4}, 20, 2),
        ({"min_epochs": 2, "min_steps": 25, "max_epochs": 4}, 25, 3),
        ({"min_steps": 2, "min_epochs": 0}, 3, 1),
    ],
)
def test_a_stop_waits_for_the_minimum(
    tmp_path: Path, arguments: dict[str, Any], steps: int, epochs: int
) -> None:
    trainer = fit(tmp_path, StopsAt(3), **arguments)
    assert (trainer.global_step, trainer.current_epoch) == (steps, epochs)


def test_a_minimum_is_spoken_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, StopsAt(3), min_steps=7)
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if "A stop was asked for" in line
    ]
    assert "min_steps=7 is not reached: training goes on" in line


def test_a_stop_validates_first(tmp_path: Path) -> None:
    stops = StopsAt(3)
    fit(tmp_path, stops)
    assert stops.validated == [3]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [({"max_epochs": 1}, "`max_epochs=1` reached"), ({"max_steps": 2}, "`max_steps=2` reached")],
)
def test_the_reason_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], reason: str
) -> None:
    fit(tmp_path, Notes(), **arguments)
    assert f"`Trainer.fit` stopped: {reason}." in capsys.readouterr().err


def test_without_batches_there_is_no_epoch(tmp_path: Path) -> None:
    trainer = fit(tmp_path, Notes(), batches=DataLoader([]))  # type: ignore[arg-type]
    assert (trainer.global_step, trainer.current_epoch, trainer.state.finished) == (0, 0, True)


@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", "on_train_epoch_end", "on_validation_batch_end"]
)
def test_sigterm_ends_the_fit_at_the_next_batch(tmp_path: Path, hook: str) -> None:
    """The signal itself; on several ranks: tests/parallel/test_ddp.py."""
    told: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *args: told.append("handler from before"))

    class Signals(Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            told.append(type(exception).__name__)

        def signal(self, trainer: Any, *args: Any) -> None:
            assert not told, "nothing comes after it"
            os.kill(os.getpid(), signal.SIGTERM)
            assert trainer.received_sigterm

    setattr(Signals, hook, Signals.signal)
    try:
        with pytest.raises(Terminated) as caught:
            fit(tmp_path, Signals())
        assert told == ["handler from before", "Terminated"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert told[2:] == ["handler from before"], "after the fit it is in force again"
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught.value.code == 143
