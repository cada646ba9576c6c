from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn
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
from raylit.tune.retrain import Joined, joined, without_validation


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


class Scaled(pl.LightningDataModule):
    """Without its hook a batch is other than the model wants; one loader is made by the other."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"factor": 0.5})

    def setup(self, stage: str) -> None:
        assert self.trainer is not None

    def state_dict(self) -> dict[str, Any]:
        return {"seen": 1}

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(6, 1)), 3)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 0.5


class Watching(pl.LightningModule):
    """Its learning rate goes by what validation logs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.batches: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append(batch)
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch).sum())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": plateau, "monitor": "val_loss"}


def test_a_fit_on_joined_data_keeps_the_datamodule_and_needs_no_validation(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = Watching(), Scaled()
    data.train_dataloader = Joined(data)  # type: ignore[method-assign]
    trainer = pl.Trainer(max_epochs=1, logger=False, accelerator="cpu", default_root_dir=tmp_path)
    trainer = without_validation(trainer)
    with pytest.warns(RuntimeWarning, match="The learning rate is left as it is"):
        trainer.fit(model, datamodule=pickle.loads(pickle.dumps(data)))
    assert [one.flatten().tolist() for one in model.batches] == [[0.5] * 3] * 4
    assert "unless training logs 'val_loss'" in capsys.readouterr().err
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert stored["Scaled"] == {"seen": 1}
    assert stored["datamodule_hyper_parameters"] == {"factor": 0.5}


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
