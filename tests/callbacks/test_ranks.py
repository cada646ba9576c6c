"""Callbacks on two ranks of this machine, whose metrics differ.

Rank 0 decides and writes, and both do the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from raylit.testing import TinyModel
from tests.quiet import UNLOGGED
from tests.ranks import run_on_two_ranks


class Differs(TinyModel):
    """Logs a value that is not reduced.

    A good one on rank 0, a bad one on rank 1, worse with every epoch.
    """

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("own", self.current_epoch * (1.0 if self.global_rank else -1.0), sync_dist=False)


class FailsOnOneRank(Callback):
    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1 and trainer.global_rank == self.rank:
            raise ZeroDivisionError


def fit(folder: str, callbacks: list[Any], max_epochs: int = 3) -> pl.Trainer:
    torch.manual_seed(0)
    trainer = pl.Trainer(
        max_epochs=max_epochs,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=None,
        **UNLOGGED,
    )
    trainer.fit(Differs())
    return trainer


def main(folder: str) -> dict[str, Any]:
    """What each rank does; all in one pair of processes, whose start takes longest."""
    found: dict[str, Any] = {}
    saver = ModelCheckpoint(f"{folder}/kept", monitor="own", save_top_k=1, save_last=True)
    fit(folder, [saver])
    found["saved"] = saver.state_dict()
    default = ModelCheckpoint()
    fit(folder, [default], 1)
    found["default"] = default.best_model_path
    stopping = EarlyStopping("own", patience=1)  # rank 1 has a reason to stop, rank 0 has none
    found["stopped"] = (fit(folder, [stopping]).current_epoch, stopping.stopped_epoch)
    found["reason"] = stopping.stopping_reason.name
    found["timed"] = fit(folder, [Timer(timedelta(0))]).global_step
    timed = ModelCheckpoint(f"{folder}/timed", train_time_interval=timedelta(0), save_top_k=-1)
    fit(folder, [timed], 1)
    found["deadline"] = timed.best_model_path
    return found


def fails(folder: str) -> dict[str, Any]:
    """An exception on rank 0 alone: the run is saved, without waiting for rank 1."""
    saver = ModelCheckpoint(
        f"{folder}/failed", save_on_exception=True, every_n_epochs=0, save_last=True
    )
    try:
        fit(folder, [FailsOnOneRank(0), saver])
    except ZeroDivisionError:
        pass
    except RuntimeError:  # rank 1: its partner is gone
        assert os.environ["RANK"] == "1"
    return {"last": saver.last_model_path}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("ranks")
    yield folder, run_on_two_ranks(main, folder)


def test_rank_0_decides_what_is_saved(ranks: Any) -> None:
    folder, (zero, one) = ranks
    assert zero["saved"] == one["saved"]
    assert zero["saved"]["best_model_path"] == f"{folder}/kept/epoch=2-step=6.ckpt"
    assert float(zero["saved"]["best_model_score"]) == -2.0
    assert sorted(os.listdir(folder / "kept")) == ["epoch=2-step=6.ckpt", "last.ckpt"]
    assert zero["default"] == one["default"] == f"{folder}/checkpoints/epoch=0-step=2.ckpt"


def test_any_rank_may_stop_all(ranks: Any) -> None:
    _, (zero, one) = ranks
    assert zero["stopped"] == one["stopped"] == (2, 1)
    assert (zero["reason"], one["reason"]) == ("NOT_STOPPED", "PATIENCE_EXHAUSTED")


def test_the_clock_stops_and_saves_on_all_ranks_at_once(ranks: Any) -> None:
    _, (zero, one) = ranks
    assert zero["timed"] == one["timed"] < 6
    assert zero["deadline"] == one["deadline"] != ""


def test_an_exception_on_rank_0_alone_saves_the_run(tmp_path: Path) -> None:
    zero, _ = run_on_two_ranks(fails, tmp_path)
    saved = torch.load(zero["last"], weights_only=True)
    assert (saved["global_step"], saved["epoch"]) == (2, 1)
    assert sorted(os.listdir(tmp_path / "failed")) == ["epoch=1-step=2.ckpt", "last.ckpt"]


class LogsOnRank1(Differs):
    def on_validation_epoch_end(self) -> None:
        if self.global_rank == 1:
            self.log("rare", 1.0, sync_dist=False)


def stops_on_rank_1(folder: str) -> Any:
    found = []
    for strict in (False, True):
        trainer = pl.Trainer(
            max_epochs=4,
            accelerator="cpu",
            callbacks=[EarlyStopping("rare", patience=1, strict=strict)],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(LogsOnRank1())
            found.append(trainer.current_epoch)
        except RuntimeError as error:
            found.append(str(error).split(". Logged")[0])
    return found


def test_a_metric_that_one_rank_has_stops_all_or_is_an_error_of_all(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(stops_on_rank_1, tmp_path)
    assert zero == one
    assert zero == [2, "EarlyStopping watches 'rare', which was not logged on rank 0 of 2"]
