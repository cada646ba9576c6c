"""Features of a fit in any combination, ended at any place and gone on with.

A signal or an exception ends it; it then is bit for bit as if it had not ended.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import raylit as pl
from raylit.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    RecoveryCheckpoint,
)
from raylit.errors import Terminated
from tests.engine.test_resume import Manual, Net, Noisy, loader
from tests.quiet import UNLOGGED


class Broken(Exception):
    """What user code raises."""


class Ends(Callback):
    """Ends the fit at one place.

    By a signal, which is honoured after the batch, or by an exception.
    """

    def __init__(self, hook: str, batch: int, how: str) -> None:
        self.batch, self.how = batch, how
        setattr(self, hook, self.end)

    def end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.sanity_checking or trainer.progress.total_batches < self.batch or self.how == "":
            return
        how, self.how = self.how, ""
        if how == "exception":
            raise Broken
        signal.raise_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)


class Keeps(Callback):
    """Keeps the values of every batch, and of every epoch."""

    def __init__(self, rows: dict[Any, Any]) -> None:
        self.rows = rows

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        self.rows[trainer.progress.total_batches] = outputs["loss"].item() if outputs else 0.0

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.rows["epoch", trainer.current_epoch] = {
            name: value.item() for name, value in trainer.callback_metrics.items()
        }


class Plateau(Net):
    """A schedule that goes by a metric."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss", "strict": False},
        }


KINDS = {"steps": Net, "plateau": Plateau, "manual": Manual}
DATA: dict[str, Any] = {
    "shuffled": loader,
    "in order": lambda **more: loader(shuffle=False, **more),
    "own generator": lambda **more: loader(generator=torch.Generator().manual_seed(5), **more),
    "two": lambda **more: {
        "a": loader(**more),
        "b": DataLoader(Noisy(7), batch_size=3, shuffle=True),
    },
}
PLACES = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_zero_grad",
    "on_validation_batch_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
)

cases = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(list(KINDS)),
        "data": st.sampled_from(list(DATA)),
        "workers": st.sampled_from([0, 0, 0, 2]),
        "accumulate": st.sampled_from([1, 2, 3, "by epoch"]),
        "val_check_interval": st.sampled_from([1.0, 2, 0.5]),
        "check_val_every_n_epoch": st.sampled_from([1, 2]),
        "callbacks": st.sets(st.sampled_from(["ema", "stop"])),
        "gradient_clip_val": st.sampled_from([None, 0.1]),
        "limit_train_batches": st.sampled_from([1.0, 5]),
        "place": st.sampled_from(PLACES),
        "batch": st.integers(1, 13),
        "how": st.sampled_from(["SIGTERM", "SIGINT"]),
    }
)


def make(
    folder: Path, case: dict[str, Any], rows: dict[Any, Any], ends: list[Callback]
) -> tuple[pl.Trainer, Net, Any]:
    manual = case["kind"] == "manual"
    callbacks: list[Callback] = [
        Keeps(rows),
        RecoveryCheckpoint(folder / "recovery", every_s=None),
        *ends,
    ]
    if "ema" in case["callbacks"]:
        callbacks.append(EMAWeightAveraging(decay=0.7))
    if "stop" in case["callbacks"]:
        callbacks.append(EarlyStopping("val_loss", patience=3, strict=False))
    accumulate = 1 if manual else case["accumulate"]
    if accumulate == "by epoch":
        callbacks.append(GradientAccumulationScheduler({0: 2, 1: 3}))
    trainer = pl.Trainer(
        max_epochs=2,
        default_root_dir=folder,
        callbacks=[*callbacks, ModelCheckpoint(folder / "kept", save_top_k=0)],
        accumulate_grad_batches=1 if accumulate == "by epoch" else accumulate,
        gradient_clip_val=None if manual else case["gradient_clip_val"],
        **{
            name: case[name]
            for name in ("val_check_interval", "check_val_every_n_epoch", "limit_train_batches")
        },
        **UNLOGGED,
    )
    return trainer, KINDS[case["kind"]](), DATA[case["data"]](workers=case["workers"])


def fit(
    folder: Path,
    case: dict[str, Any],
    rows: dict[Any, Any],
    ends: list[Callback],
    seed: int,
    ckpt_path: str | None,
) -> Any:
    pl.seed_everything(seed, verbose=False)
    trainer, module, data = make(folder, case, rows, ends)
    result = trainer.fit(module, data, DataLoader(Noisy(4), batch_size=2), ckpt_path=ckpt_path)
    return module.state_dict(), result


def check(folder: Path, case: dict[str, Any]) -> None:
    rows: dict[Any, Any] = {}
    weights, result = fit(folder / "whole", case, rows, [], 3, None)
    pieces: dict[Any, Any] = {}
    try:
        again, resumed = fit(
            folder / "pieces",
            case,
            pieces,
            [Ends(case["place"], case["batch"], case["how"])],
            3,
            None,
        )
    except (Terminated, KeyboardInterrupt, Broken):
        (saved,) = (folder / "pieces" / "recovery").glob("*.ckpt")
        torch.load(saved, weights_only=True)
        again, resumed = fit(folder / "pieces", case, pieces, [], 99, "last")
    assert pieces == rows
    assert resumed.metrics == result.metrics
    assert resumed.history == result.history
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    assert not list((folder / "pieces" / "recovery").glob("*")), "a fit that ended well leaves none"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(case=cases)
def test_combinations(tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]) -> None:
    check(tmp_path_factory.mktemp("matrix"), case)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=500, deadline=None)
@given(case=cases)
def test_many_combinations(tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]) -> None:
    check(tmp_path_factory.mktemp("matrix"), case)


PLAIN: dict[str, Any] = {
    "kind": "steps",
    "data": "shuffled",
    "workers": 0,
    "accumulate": 1,
    "val_check_interval": 2,
    "check_val_every_n_epoch": 1,
    "callbacks": set(),
    "gradient_clip_val": None,
    "limit_train_batches": 1.0,
    "how": "SIGTERM",
}


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "exception"])
@pytest.mark.parametrize("batch", range(1, 14))
def test_within_validation(tmp_path: Path, batch: int, how: str) -> None:
    check(tmp_path, {**PLAIN, "place": "on_validation_batch_end", "batch": batch, "how": how})


@pytest.mark.parametrize("batch", [1, 8])
def test_between_epochs(tmp_path: Path, batch: int) -> None:
    """Also after the last one.

    What comes at the end of training, such as to take over the average of the weights, is not
    forgotten.
    """
    check(tmp_path, {**PLAIN, "callbacks": {"ema"}, "place": "on_train_epoch_end", "batch": batch})


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("batch", range(1, 15))
def test_after_any_batch(tmp_path: Path, batch: int, accumulate: int) -> None:
    check(
        tmp_path,
        {**PLAIN, "accumulate": accumulate, "place": "on_train_batch_start", "batch": batch},
    )
