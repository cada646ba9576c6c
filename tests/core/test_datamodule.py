from __future__ import annotations

import pickle
from typing import Any

import pytest
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

import raylit as pl
from raylit.testing import BoringDataModule, RandomDataset


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(4))


def test_the_short_name() -> None:
    assert pl.DataModule is pl.LightningDataModule


def test_only_training_data_of_datasets_is_shuffled() -> None:
    data = pl.LightningDataModule.from_datasets(
        RandomDataset(2, 8), [RandomDataset(2, 4), RandomDataset(2, 6)], batch_size=2
    )
    assert isinstance(data.train_dataloader().sampler, RandomSampler)
    assert [len(loader) for loader in data.val_dataloader()] == [2, 3]
    assert all(isinstance(loader.sampler, SequentialSampler) for loader in data.val_dataloader())
    assert data.test_dataloader() is None


def test_a_stream_cannot_be_shuffled() -> None:
    loader = pl.LightningDataModule.from_datasets({"a": Stream()}, batch_size=2).train_dataloader()[
        "a"
    ]
    assert [batch.tolist() for batch in loader] == [[0, 1], [2, 3]]


def test_arguments_of_a_subclass_are_passed_by_name() -> None:
    class Sized(pl.LightningDataModule):
        def __init__(self, batch_size: int, extra: str = "") -> None:
            super().__init__()
            self.save_hyperparameters()

    made = Sized.from_datasets(RandomDataset(2, 8), batch_size=4, num_workers=0, extra="x")
    assert dict(made.hparams) == {"batch_size": 4, "extra": "x"}


def test_it_pickles_without_its_trainer() -> None:
    data = pl.LightningDataModule.from_datasets(RandomDataset(2, 8), batch_size=4)
    data.trainer = pl.Trainer(logger=False, max_epochs=1)
    copied = pickle.loads(pickle.dumps(data))
    assert copied.trainer is None
    assert len(copied.train_dataloader()) == 2


def test_its_text_names_the_sizes() -> None:
    names = ["Train", "Validation", "Test", "Predict"]
    data = BoringDataModule()
    for stage in ("fit", "test", "predict"):
        data.setup(stage)
    assert str(data).splitlines() == [f"{{{name} dataloader: size=64}}" for name in names]

    class NeedsSetup(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return DataLoader(self.data)  # type: ignore[attr-defined]

    assert str(NeedsSetup()).splitlines() == [f"{{{name} dataloader: None}}" for name in names]


@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
def test_nothing_is_given_by_default(stage: str) -> None:
    assert getattr(pl.LightningDataModule(), f"{stage}_dataloader")() is None
