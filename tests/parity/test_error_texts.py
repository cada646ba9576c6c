"""Errors user code may catch by class or look for in the text: the same under both packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import raylit
from tests.lazy import lightning
from tests.parity.harness import run
from tests.quiet import BARE

TINY: dict[str, Any] = {**BARE, "max_epochs": 1}


def boring(pl: Any) -> Any:
    demos = raylit.demos if pl is raylit else lightning.pytorch.demos
    return demos.boring_classes.BoringModel()


def trainer(pl: Any, **arguments: Any) -> Any:
    return pl.Trainer(**{**TINY, **arguments})


def without(pl: Any, method: str) -> Any:
    model = boring(pl)
    setattr(model, method, None)
    return model


def two_optimizers(pl: Any) -> Any:
    model = boring(pl)
    model.configure_optimizers = lambda: [
        torch.optim.SGD(model.parameters(), lr=0.1),
        torch.optim.SGD(model.parameters(), lr=0.1),
    ]
    return model


def no_dataloader_idx(pl: Any) -> Any:
    model = boring(pl)
    model.validation_step = lambda batch, batch_idx: None
    return model


def loader() -> Any:
    return DataLoader(torch.zeros(4, 32))


CASES: dict[str, tuple[type[Exception], str, Any]] = {
    "max_epochs": (
        ValueError,
        "`max_epochs` must be a non-negative integer or -1",
        lambda pl: trainer(pl, max_epochs=-2),
    ),
    "limit": (
        ValueError,
        "You have passed invalid value 1.5 for limit_train_batches, it has to be in",
        lambda pl: trainer(pl, limit_train_batches=1.5),
    ),
    "accelerator": (
        ValueError,
        "You selected an invalid accelerator name: `accelerator='coal'`",
        lambda pl: trainer(pl, accelerator="coal"),
    ),
    "strategy": (
        ValueError,
        "You selected an invalid strategy name: `strategy='unknown'`",
        lambda pl: trainer(pl, strategy="unknown"),
    ),
    "clip": (
        TypeError,
        "`gradient_clip_val` should be an int or a float",
        lambda pl: trainer(pl, gradient_clip_val="1"),
    ),
    "no model": (
        TypeError,
        "`model` must be a `LightningModule` or `torch._dynamo.OptimizedModule`, got `str`",
        lambda pl: trainer(pl).fit("model"),
    ),
    "no step": (
        ValueError,
        "No `training_step()` method defined",
        lambda pl: trainer(pl).fit(without(pl, "training_step")),
    ),
    "no data": (
        TypeError,
        "An invalid dataloader was passed to `Trainer.fit(train_dataloaders=...)`",
        lambda pl: trainer(pl).fit(without(pl, "train_dataloader")),
    ),
    "data of no type": (
        TypeError,
        "An invalid dataloader was passed",
        lambda pl: trainer(pl).fit(boring(pl), 5),
    ),
    "two optimizers": (
        RuntimeError,
        "Training with multiple optimizers is only supported with manual optimization",
        lambda pl: trainer(pl).fit(two_optimizers(pl)),
    ),
    "dataloader_idx": (
        RuntimeError,
        "but no `dataloader_idx` argument in",
        lambda pl: trainer(pl).validate(no_dataloader_idx(pl), [loader(), loader()]),
    ),
    "save": (
        AttributeError,
        "Saving a checkpoint is only possible if a model is attached to the Trainer",
        lambda pl: trainer(pl).save_checkpoint("x.ckpt"),
    ),
    "best": (
        ValueError,
        '`.fit(ckpt_path="best")` is set but `ModelCheckpoint` is not configured',
        lambda pl: trainer(pl).fit(boring(pl), ckpt_path="best"),
    ),
    "lr_find": (
        AttributeError,
        "When using the learning rate finder, either `model` or `model.hparams` should have one of",
        lambda pl: pl.tuner.Tuner(trainer(pl)).lr_find(boring(pl)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_class_and_the_key_phrase(name: str, tmp_path: Path) -> None:
    kind, text, act = CASES[name]
    for pl in (lightning.pytorch, raylit):
        known = (kind, pl.utilities.exceptions.MisconfigurationException)
        with pytest.raises(known) as raised:
            run(lambda pl, root: act(pl), pl, tmp_path)
        assert text in str(raised.value), pl.__name__
        if pl is raylit:
            assert isinstance(raised.value, kind)
