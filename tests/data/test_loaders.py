"""From what the user gave to what a rank reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import raylit as pl
from raylit.data import CombinedLoader, prepare
from raylit.data.loaders import num_batches
from raylit.errors import DataError
from raylit.parallel import World
from raylit.parallel.world import choose_device
from raylit.testing import BoringModel
from tests.quiet import BARE
from tests.ranks import run_on_two_ranks

ALONE = World(choose_device("cpu", 0))


@pytest.mark.parametrize(
    ("length", "limit", "expected"),
    [
        (10, 1.0, 10),
        (10, 3, 3),
        (10, 30, 10),
        (10, np.int64(3), 3),
        (10, 0.35, 3),
        (10, 0, 0),
        (10, 0.0, 0),
        (0, 0.5, 0),
        (float("inf"), 1.0, float("inf")),
        (float("inf"), 4, 4),
    ],
)
def test_limit_is_a_number_or_a_fraction(length: float, limit: float, expected: float) -> None:
    assert num_batches("val", length, limit) == expected


@pytest.mark.parametrize(
    ("length", "limit", "message"),
    [
        (10, 0.01, r"limit_val_batches=0.01 of the 10 batches.*at least 0\.1"),
        (float("inf"), 0.5, "has no length. Give a number"),
    ],
)
def test_limit_that_cannot_be_met(length: float, limit: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        num_batches("val", length, limit)


def prepared(
    data: object, stage: str = "train", limit: float = 1.0, overfit: bool = False
) -> CombinedLoader:
    return prepare(
        data,
        stage,
        ALONE,
        limit=limit,
        distribute=True,
        overfit=overfit,
        origin="Net.train_dataloader()",
    )


def test_training_cycles_and_evaluation_goes_on() -> None:
    assert prepared({"a": range(4), "b": range(2)}).mode == "max_size_cycle"
    assert prepared([range(4), range(2)], "val").mode == "sequential"
    assert prepared(CombinedLoader([range(4), range(2)], "min_size")).mode == "min_size"


def test_alone_the_users_loader_itself_is_read() -> None:
    loader = DataLoader(range(4), shuffle=True)  # type: ignore[arg-type]
    assert prepared(loader).flattened[0] is loader


@pytest.mark.parametrize(
    ("data", "stage", "message"),
    [
        (3, "train", r"Net.train_dataloader\(\) gave 3 \(int\), which cannot be iterated"),
        ([range(3), None], "val", "gave None"),
        (CombinedLoader(range(3), "sequential"), "train", "cannot be trained on"),
        (CombinedLoader(range(3), "min_size"), "predict", "cannot be predicted on"),
    ],
)
def test_data_that_cannot_be_read(data: object, stage: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepared(data, stage)


def test_overfit_reads_in_order() -> None:
    loader = DataLoader(range(5), shuffle=True, collate_fn=list)  # type: ignore[arg-type]
    assert [batch for batch, _, _ in prepared(loader, overfit=True, limit=3)] == [[0], [1], [2]]


def validate_a_half(folder: str) -> int:
    data = DataLoader(torch.randn(5, 32), batch_size=2)  # type: ignore[arg-type]
    trainer = pl.Trainer(limit_val_batches=0.5, default_root_dir=folder, **BARE)
    trainer.validate(BoringModel(), data, verbose=False)
    return int(trainer.num_val_batches[0])


def test_a_fraction_is_the_same_decision_on_all_ranks(tmp_path: Path) -> None:
    """The second rank has one batch, of which a half is less than one."""
    assert run_on_two_ranks(validate_a_half, tmp_path) == [1, 1]
