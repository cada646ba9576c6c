from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import raylit as pl
from raylit.callbacks import BasePredictionWriter, BatchSizeFinder, Callback
from raylit.errors import ConfigError
from raylit.testing import CallbackConformance, TinyModel
from tests.ranks import run_on_two_ranks


class Writer(BasePredictionWriter):
    """Keeps what it gets."""

    def __init__(self, write_interval: Any = "batch_and_epoch") -> None:
        super().__init__(write_interval)
        self.batches: list[Any] = []
        self.epochs: list[Any] = []

    def write_on_batch_end(
        self,
        trainer: Any,
        pl_module: Any,
        prediction: Any,
        batch_indices: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        self.batches.append((prediction, batch_indices, batch))

    def write_on_epoch_end(
        self, trainer: Any, pl_module: Any, predictions: Any, batch_indices: Any
    ) -> None:
        self.epochs.append((list(predictions), batch_indices))


class TestWriter(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return Writer


class Numbers(pl.LightningModule):
    """Predicts what it is given."""

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch.clone()


def trainer(*callbacks: Callback) -> pl.Trainer:
    return pl.Trainer(
        callbacks=list(callbacks),
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_checkpointing=False,
        max_epochs=1,
    )


def test_indices_name_the_samples() -> None:
    writer = Writer()
    data: Any = torch.arange(11.0)
    trainer(writer).predict(
        Numbers(), DataLoader(data, batch_size=3, shuffle=True), return_predictions=False
    )
    ((predictions, (indices,)),) = writer.epochs
    assert [prediction.tolist() for prediction in predictions] == [
        [float(index) for index in batch] for batch in indices
    ]
    assert [batch for _, batch, _ in writer.batches] == indices
    assert sorted(index for batch in indices for index in batch) == list(range(11))


def test_a_trainer_without_a_writer_keeps_the_users_loader() -> None:
    data: Any = torch.arange(4.0)
    loader = DataLoader(data, batch_size=2)
    one = trainer()
    one.predict(Numbers(), loader)
    assert one.predict_dataloaders is loader
    assert one.epoch_batch_indices == []


def test_a_loader_without_indices_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    with pytest.warns(UserWarning, match=r"BasePredictionWriter gets no batch_indices"):
        trainer(writer).predict(Numbers(), iter([torch.ones(2)]))
    assert writer.batches[0][1] == []
    assert writer.epochs[0][1] == [[]]


def test_the_batch_sampler_stays_what_it_was() -> None:
    data: Any = torch.arange(4.0)
    noting = pl.data.noting_indices(DataLoader(data, batch_size=2))
    assert (noting.batch_sampler.batch_size, noting.batch_sampler.drop_last, len(noting)) == (
        2,
        False,
        2,
    )
    assert pickle.loads(pickle.dumps(noting.batch_sampler)).batch_size == 2


def test_an_unknown_interval() -> None:
    with pytest.raises(
        ConfigError, match=r"write_interval='step'.*'batch', 'epoch', 'batch_and_epoch'"
    ):
        Writer("step")


def predict_on_two(folder: str) -> Any:
    writer = Writer()
    data: Any = torch.arange(7.0)
    returned = trainer(writer).predict(Numbers(), DataLoader(data, batch_size=2))
    return (
        [batch.tolist() for batch in returned],
        [batch.tolist() for batch in writer.epochs[0][0]],
        writer.epochs[0][1],
    )


def test_each_rank_writes_its_piece(tmp_path: Path) -> None:
    ranks = run_on_two_ranks(predict_on_two, tmp_path)
    everything = [[0.0, 1.0], [2.0], [3.0, 4.0], [5.0, 6.0]]
    assert [predictions for _, predictions, _ in ranks] == [everything[:2], everything[2:]]
    for returned, predictions, indices in ranks:
        assert returned == everything
        assert indices == [[[int(value) for value in batch] for batch in predictions]]


def test_fit_is_no_prediction(tmp_path: Path) -> None:
    writer = Writer()
    trainer(writer).fit(TinyModel())
    assert writer.batches == writer.epochs == []


class Scaled(Numbers):
    """Has a batch size that may be searched for, and no room for more than four samples."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 1

    def predict_dataloader(self) -> Any:
        data: Any = torch.arange(11.0)
        return DataLoader(data, batch_size=self.batch_size)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        if len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return batch.clone()


def test_indices_of_batches_whose_size_was_searched_for() -> None:
    writer = Writer()
    finder = BatchSizeFinder(init_val=1, max_trials=8)
    trainer(finder, writer).predict(Scaled())
    ((predictions, (indices,)),) = writer.epochs
    assert [len(batch) for batch in indices] == [4, 4, 3]
    assert [prediction.tolist() for prediction in predictions] == indices
