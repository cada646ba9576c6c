"""Two ranks go on bit for bit, each with its own random states and part of the epoch's values."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from tests.engine.test_resume import Net, Saves, fit, loader
from tests.ranks import run_on_two_ranks

NUM_BATCHES = 8  # of a rank, in two epochs


class Own(Net):
    """Draws random numbers that differ between the ranks, and logs what only one rank has."""

    def on_train_start(self) -> None:
        torch.manual_seed(self.global_rank)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("drawn", torch.rand(()), on_step=False, on_epoch=True)
        if self.global_rank == 1:
            self.log("on_rank_1", torch.rand(()), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def both_go_on(folder: str) -> list[Any]:
    """What differs between the whole fit and those that went on after each batch: nothing."""
    root = Path(folder)
    weights, rows, result = fit(root, loader(), kind=Own, callbacks=[Saves(root)])
    assert len(rows) == NUM_BATCHES
    differing = []
    for number in range(1, NUM_BATCHES + 1):
        again, rest, resumed = fit(root, loader(), kind=Own, ckpt_path=root / f"{number}.ckpt")
        same = (
            rest == {key: row for key, row in rows.items() if key > number}
            and resumed.metrics == result.metrics
        )
        if not same or not all(torch.equal(again[key], value) for key, value in weights.items()):
            differing.append((number, rest, rows, resumed.metrics, result.metrics))
    return differing


def test_two_ranks_go_on(tmp_path: Path) -> None:
    assert run_on_two_ranks(both_go_on, tmp_path) == [[], []]


def goes_on_alone(folder: str) -> None:
    root = Path(folder)
    fit(root, loader(), kind=Own, callbacks=[Saves(root)], max_epochs=1)


def test_another_number_of_ranks_is_told_what_it_cannot_have(
    tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    run_on_two_ranks(goes_on_alone, tmp_path)
    monkeypatch.setattr(logging.getLogger("raylit"), "propagate", True)
    fit(tmp_path, loader(), kind=Own, ckpt_path=tmp_path / "2.ckpt", max_epochs=1)
    assert (
        "was saved by 2 ranks, and this fit has 1: what is left of the epoch is dealt out"
        in caplog.text
    )
