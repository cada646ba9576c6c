"""Data that keeps its own place, or keeps none: a fit goes on with the next batch, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

import raylit as pl
from raylit.callbacks import Callback
from tests.engine.test_resume import Noisy, Saves, fit

Sample = tuple[Tensor, Tensor]


class Stream(IterableDataset[Sample]):
    """Samples one after the other, with a random number generator of its own."""

    def __init__(self) -> None:
        self.position, self.generator = 0, torch.Generator().manual_seed(4)

    def __iter__(self) -> Iterator[Sample]:
        while self.position < 20:
            self.position += 1
            x = torch.randn(3, generator=self.generator)
            yield x, x.sum()
        self.position = 0


class StreamWithState(Stream):
    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self.generator.set_state(state["generator"])


class Loader:
    """A loader that is no DataLoader, and whose state is not copied when it is given out."""

    def __init__(self, length: bool) -> None:
        self.state, self.is_loaded = {"position": 0}, False
        if length:
            self.__class__ = type("Sized", (Loader,), {"__len__": lambda self: 7})

    def __iter__(self) -> Iterator[Sample]:
        if not self.is_loaded:
            self.state["position"] = 0
        self.is_loaded = False
        return self.read()

    def read(self) -> Iterator[Sample]:
        while self.state["position"] < 7:
            self.state["position"] += 1
            x = torch.randn(3, 3, generator=torch.Generator().manual_seed(self.state["position"]))
            yield x, x.sum(1)

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state.update(state)
        self.is_loaded = True


KINDS: dict[str, Any] = {
    "an iterable data set": lambda: DataLoader(StreamWithState(), batch_size=3),
    "a loader": lambda: Loader(length=False),
    "a loader with a length": lambda: Loader(length=True),
    "torchdata, shuffled": lambda: StatefulDataLoader(Noisy(), batch_size=3, shuffle=True),
    "torchdata, an iterable data set": lambda: StatefulDataLoader(StreamWithState(), batch_size=3),
    "torchdata, a worker": lambda: StatefulDataLoader(
        StreamWithState(), batch_size=3, num_workers=1
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_with_the_next_batch(tmp_path: Path, kind: str, recwarn: Any) -> None:
    weights, rows, result = fit(tmp_path, KINDS[kind](), callbacks=[Saves(tmp_path)])
    assert len(rows) == 14
    for number in range(1, len(rows) + 1, 4 if "worker" in kind else 1):
        again, rest, resumed = fit(tmp_path, KINDS[kind](), ckpt_path=tmp_path / f"{number}.ckpt")
        assert rest == {key: row for key, row in rows.items() if key > number}, number
        assert resumed.metrics == result.metrics, number
        assert all(torch.equal(again[key], value) for key, value in weights.items()), number
    assert not [one for one in recwarn if "keeps no state" in str(one.message)]


class SavesBefore(Callback):
    """Saves before each epoch, and in each batch before it has changed anything.

    So does an exception in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch-{trainer.current_epoch}.ckpt")

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.progress.total_batches}.ckpt")


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_with_the_batch_that_it_ended_in(tmp_path: Path, kind: str) -> None:
    weights, rows, _ = fit(tmp_path, KINDS[kind](), callbacks=[SavesBefore(tmp_path)])
    for number in (1, 4, 7, 8, 11):
        again, rest, _ = fit(tmp_path, KINDS[kind](), ckpt_path=tmp_path / f"{number}.ckpt")
        assert rest == {key: row for key, row in rows.items() if key >= number}, number
        assert all(torch.equal(again[key], value) for key, value in weights.items()), number


def test_without_a_state_what_was_read_is_read_again(tmp_path: Path) -> None:
    def stream() -> Any:
        return DataLoader(Stream(), batch_size=3)

    weights, rows, _ = fit(tmp_path, stream(), callbacks=[Saves(tmp_path)], max_epochs=1)
    for number in (1, 4, 6):
        with pytest.warns(
            UserWarning,
            match=rf"keeps no state: its first {number} batches are read again and dropped",
        ):
            again, rest, _ = fit(
                tmp_path, stream(), ckpt_path=tmp_path / f"{number}.ckpt", max_epochs=1
            )
        assert rest == {key: row for key, row in rows.items() if key > number}
        assert all(torch.equal(again[key], value) for key, value in weights.items())


@pytest.mark.parametrize("kind", KINDS)
def test_between_epochs_it_goes_on_with_the_next_one(tmp_path: Path, kind: str) -> None:
    _, rows, _ = fit(tmp_path, KINDS[kind](), callbacks=[SavesBefore(tmp_path)])
    _, rest, _ = fit(tmp_path, KINDS[kind](), ckpt_path=tmp_path / "epoch-1.ckpt")
    assert sorted(rest) == list(range(8, 15))
    if "a loader" in kind:  # the others draw their order, of which no state tells yet
        assert rest == {key: row for key, row in rows.items() if key > 7}
