from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import raylit as pl
from raylit.callbacks import EarlyStopping, ModelCheckpoint
from raylit.errors import ConfigError
from raylit.tune.average import checkpoints_beside, write_average
from raylit.tune.retrain import joined, without_validation


def rows(start: int, end: int) -> TensorDataset:
    return TensorDataset(torch.arange(start, end))


class Endless(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(3))


def test_a_joined_loader_reads_both_as_the_training_loader_does() -> None:
    train = DataLoader(rows(0, 6), 4, shuffle=True, drop_last=True)
    loader = joined(train, DataLoader(rows(6, 9), 100))
    batches = list(loader)
    assert [len(batch[0]) for batch in batches] == [4, 4], "9 rows, the last of which is dropped"
    assert not isinstance(loader.sampler, SequentialSampler)
    whole = joined(DataLoader(rows(0, 6), 4), DataLoader(rows(6, 9), 100))
    assert torch.cat([batch[0] for batch in whole]).tolist() == list(range(9))


@pytest.mark.parametrize(
    "train",
    [
        DataLoader(Endless(), 2),
        DataLoader(rows(0, 4), 2, sampler=WeightedRandomSampler([1.0] * 4, 4)),
        [[torch.ones(1)]],
    ],
)
def test_what_cannot_be_joined_is_refused_with_the_flag_that_helps(train: Any) -> None:
    with pytest.raises(ConfigError, match="--retrain train"):
        joined(train, DataLoader(rows(4, 6)))


def test_without_validation_nothing_waits_for_its_metrics() -> None:
    callbacks = [EarlyStopping("val_loss"), ModelCheckpoint(monitor="val_loss")]
    trainer = without_validation(pl.Trainer(max_epochs=1, logger=False, callbacks=callbacks))
    savers = [one for one in trainer.callbacks if isinstance(one, ModelCheckpoint)]
    assert [one.monitor for one in savers] == [None]
    assert not any(isinstance(one, EarlyStopping) for one in trainer.callbacks)


def test_an_average_holds_the_mean_of_the_weights(tmp_path: Any) -> None:
    for number, value in enumerate((1.0, 2.0, 6.0)):
        state = {"weight": torch.full((2,), value), "seen": torch.tensor(number)}
        torch.save({"state_dict": state, "epoch": number}, tmp_path / f"epoch={number}.ckpt")
    torch.save({}, tmp_path / "last.ckpt")
    paths = checkpoints_beside(str(tmp_path / "epoch=1.ckpt"))
    assert [path.rpartition("/")[2] for path in paths] == [f"epoch={n}.ckpt" for n in range(3)]
    written = torch.load(write_average(paths), weights_only=True)
    assert written["state_dict"]["weight"].tolist() == [3.0, 3.0]
    assert written["epoch"] == 0 and int(written["state_dict"]["seen"]) == 0
    assert len(checkpoints_beside(paths[0])) == 3, "not the average itself"
