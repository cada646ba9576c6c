"""Batches of several modalities, in whatever they come, go everywhere a batch goes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

import raylit as pl
from raylit.data import collate_missing
from raylit.errors import DataError
from raylit.runtime.batch import cast_to, move_to, named_tensors, size_of, with_tensors
from tests.quiet import trainer

NUM_SAMPLES = 10


@dataclass(frozen=True)
class AsDataclass:
    image: Tensor
    text: dict[str, Tensor]


@attrs.frozen
class AsAttrs:
    image: Tensor
    text: dict[str, Tensor]


@attrs.define(slots=False)
class AsOpenAttrs:
    image: Tensor
    text: dict[str, Tensor]


class AsTuple(NamedTuple):
    image: Tensor
    text: dict[str, Tensor]


KINDS: list[type[Any]] = [AsDataclass, AsAttrs, AsOpenAttrs, AsTuple, dict]


def sample(index: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(index)
    ids = torch.randint(0, 9, (4,), generator=generator)
    return {"image": torch.randn(6, generator=generator), "text": {"ids": ids}}


def collated(samples: list[dict[str, Any]], kind: type[Any]) -> Any:
    return kind(**default_collate(samples))


def loader(kind: type[Any]) -> DataLoader[Any]:
    samples: Any = [sample(index) for index in range(NUM_SAMPLES)]
    return DataLoader(samples, batch_size=4, collate_fn=partial(collated, kind=kind))


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 3)
        self.head = nn.Linear(6 + 3, 1)

    def forward(self, image: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([image, self.embedding(text["ids"]).mean(1)], 1))

    def _loss(self, batch: Any) -> Tensor:
        return self(*self.forward_inputs(batch)).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        made = self(*self.forward_inputs(batch))
        return type(batch)(image=made, text={"ids": made})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_batch_is_it_is_moved_cast_and_counted(kind: type[Any]) -> None:
    batch = next(iter(loader(kind)))
    assert list(named_tensors(batch)) == ["image", "text.ids"]
    assert size_of(batch) == 4
    moved = move_to(batch, "meta")
    assert type(moved) is type(batch)
    assert {one.device.type for one in named_tensors(moved).values()} == {"meta"}
    half = named_tensors(cast_to(batch, torch.float16))
    assert half["image"].dtype is torch.float16
    assert half["text.ids"].dtype is torch.int64
    assert {one.device.type for one in named_tensors(batch).values()} == {"cpu"}
    doubled = with_tensors(batch, [one * 2 for one in named_tensors(batch).values()])
    for name, one in named_tensors(batch).items():
        assert torch.equal(named_tensors(doubled)[name], one * 2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_whatever_a_batch_is(tmp_path: Path, kind: type[Any]) -> None:
    losses = []
    for one in (dict, kind):
        pl.seed_everything(0)
        model = Net()
        fitted = trainer(tmp_path, precision="64-true").fit(model, loader(one), loader(one))
        losses.append(fitted.metrics["val_loss"])
        predictions = trainer(tmp_path).predict(model, loader(one))
        assert [type(prediction) for prediction in predictions] == [one] * 3
    assert losses[0] == losses[1]


def test_a_missing_modality_gets_a_placeholder_and_a_mask() -> None:
    samples: list[Any] = [
        {"image": torch.ones(2, 2), "text": "hello", "age": 3.0, "more": {"ids": torch.ones(3)}},
        {"image": None, "age": 5.0},
    ]
    batch = collate_missing(samples)
    assert batch["image"].tolist() == [[[1, 1], [1, 1]], [[0, 0], [0, 0]]]
    assert batch["text"] == ["hello", ""]
    assert batch["more"]["ids"].tolist() == [[1, 1, 1], [0, 0, 0]]
    masks = {name: mask.tolist() for name, mask in batch["present"].items()}
    assert masks == {
        "image": [True, False],
        "text": [True, False],
        "age": [True, True],
        "more": [True, False],
    }


def test_a_modality_that_a_whole_batch_lacks_needs_a_placeholder() -> None:
    samples = [{"age": 1.0, "image": None}] * 3
    assert list(collate_missing(samples)) == ["age", "present"]
    batch = collate_missing(samples, placeholder={"image": torch.full((2,), -1.0)})
    assert batch["image"].tolist() == [[-1, -1]] * 3
    assert batch["present"]["image"].tolist() == [False] * 3


@pytest.mark.parametrize("kind", [AsDataclass, AsAttrs])
def test_samples_with_fields_can_lack_one(kind: type[Any]) -> None:
    batch = collate_missing([kind(**sample(0)), kind(image=None, text=sample(1)["text"])])
    assert batch["present"]["image"].tolist() == [True, False]
    assert batch["text"]["ids"].shape == (2, 4)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(torch.ones(2), 1)], "whose parts have no names"),
        ([torch.ones(2)], "whose parts have no names"),
        ([{"present": torch.ones(2)}], "is called 'present'"),
        ([{"image": object()}], "cannot stand in for a object"),
    ],
)
def test_samples_that_cannot_be_collated(samples: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        collate_missing(samples)


class Deaf(Net):
    """Does not hear what the text says: nothing of it reaches the loss."""

    def forward(self, image: Tensor, text: dict[str, Tensor]) -> Tensor:
        return self.head(torch.cat([image, 0 * self.embedding(text["ids"]).mean(1)], 1))


class Blind(Net):
    """Sees the image, but does not learn from it."""

    def forward(self, image: Tensor, text: dict[str, Tensor]) -> Tensor:
        return super().forward(image * 0, text)


@pytest.mark.parametrize("kind", [dict, AsAttrs])
@pytest.mark.parametrize(("model", "ignored"), [(Net, None), (Deaf, "text.ids"), (Blind, "image")])
def test_a_check_names_the_modality_that_gets_no_gradient(
    tmp_path: Path, model: type[Net], ignored: str | None, kind: type[Any]
) -> None:
    report = trainer(tmp_path).check(model(), loader(kind), verbose=False)
    assert report["inputs"].status == ("ok" if ignored is None else "warning")
    if ignored is not None:
        assert report["inputs"].values["ignored"] == [ignored]
        assert f"does not depend on {ignored}" in report["inputs"].found
