"""WeightAveraging and EMAWeightAveraging: weights, checkpoints, and going on from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn

import raylit
from tests.lazy import lightning
from tests.parity.harness import (
    files,
    loader,
    model_class,
    packages,
    parity,
    plain,
    quiet,
    seen,
    seen_after,
    trainer,
)
from tests.parity.test_checkpoints import contents, counters, saving_at


def normed(pl: Any, *, dropout: float = 0.25) -> Any:
    """A model with batch norm, whose optimizer and scheduler have state."""

    class Normed(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(dropout)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.layer(self.dropout(x)))
            return out

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    return Normed


def by_epoch(pl: Any, start: int = 0) -> Any:
    """Averages after epochs."""

    class ByEpoch(pl.callbacks.WeightAveraging):  # type: ignore[misc]
        def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
            return epoch_idx is not None and epoch_idx >= start

    return ByEpoch


AVERAGES: dict[str, Any] = {
    "mean": lambda pl: pl.callbacks.WeightAveraging(),
    "copied-buffers": lambda pl: pl.callbacks.WeightAveraging(use_buffers=False),
    "cpu": lambda pl: pl.callbacks.WeightAveraging(device="cpu"),
    "avg_fn": lambda pl: pl.callbacks.WeightAveraging(avg_fn=get_ema_avg_fn(0.8)),
    "multi_avg_fn": lambda pl: pl.callbacks.WeightAveraging(multi_avg_fn=get_ema_multi_avg_fn(0.8)),
    "multi_avg_fn-mean": lambda pl: pl.callbacks.WeightAveraging(
        multi_avg_fn=get_swa_multi_avg_fn(), use_buffers=False
    ),
    "epochs": lambda pl: by_epoch(pl)(),
    "ema": lambda pl: pl.callbacks.EMAWeightAveraging(decay=0.9),
    "ema-rarely": lambda pl: pl.callbacks.EMAWeightAveraging(decay=0.9, update_every_n_steps=3),
    "ema-epochs": lambda pl: pl.callbacks.EMAWeightAveraging(
        decay=0.7, update_every_n_steps=2, update_starting_at_epoch=1
    ),
}


@parity
@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"accumulate_grad_batches": 3}, {"val_check_interval": 2}],
    ids=lambda a: "".join(a) or "none",
)
def test_weights_and_metrics(
    pl: Any, tmp_path: Path, average: str, arguments: dict[str, Any]
) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "kept", save_top_k=-1)
    callbacks = [AVERAGES[average](pl), saver]
    one = trainer(
        pl,
        tmp_path,
        callbacks=callbacks,
        max_epochs=3,
        logger=True,
        log_every_n_steps=1,
        num_sanity_val_steps=0,
        **arguments,
    )
    # with the validation of "epochs" in the first epoch, see tests/parity/test_differences.py
    one.fit(normed(pl)(), loader(4), loader(2) if average != "epochs" else None)
    found = {name: contents(tmp_path / name) for name in files(tmp_path)}
    for one_file in found.values():
        one_file["loops"] = counters(one_file["loops"])
    return {**seen(one), "files": found}


@parity
@pytest.mark.parametrize(
    "hook", ["on_train_batch_end", "on_validation_end", "on_train_epoch_start", "on_train_end"]
)
def test_checkpoints_within_an_epoch(pl: Any, tmp_path: Path, hook: str) -> Any:
    path = tmp_path / "one.ckpt"
    callbacks = [
        pl.callbacks.EMAWeightAveraging(decay=0.9),
        saving_at(pl, hook, path, 8 if hook == "on_train_end" else 4),
    ]
    trainer(pl, tmp_path, callbacks=callbacks).fit(normed(pl)(), loader(4), loader(2))
    found = contents(path)
    return {**found, "loops": counters(found["loops"])}


@parity
@pytest.mark.parametrize("average", ["mean", "copied-buffers", "ema", "ema-rarely", "epochs"])
def test_going_on(pl: Any, tmp_path: Path, average: str) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "kept")
    trainer(pl, tmp_path, callbacks=[AVERAGES[average](pl), saver], max_epochs=2).fit(
        normed(pl, dropout=0)(), loader(4)
    )
    torch.manual_seed(2)
    one = trainer(pl, tmp_path, callbacks=[AVERAGES[average](pl)], max_epochs=4)
    one.fit(normed(pl, dropout=0)(), loader(4), ckpt_path=saver.best_model_path)
    return seen_after(one)


@parity
def test_a_checkpoint_without_averages(pl: Any, tmp_path: Path) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "kept")
    trainer(pl, tmp_path, callbacks=[saver], max_epochs=1).fit(normed(pl, dropout=0)(), loader(4))
    one = trainer(pl, tmp_path, callbacks=[pl.callbacks.WeightAveraging()], max_epochs=2)
    one.fit(normed(pl, dropout=0)(), loader(4), ckpt_path=saver.best_model_path)
    return seen_after(one)


@parity
def test_a_new_trainer_tests_the_average(pl: Any, tmp_path: Path) -> Any:
    saver = pl.callbacks.ModelCheckpoint(tmp_path / "kept")
    trainer(pl, tmp_path, callbacks=[pl.callbacks.WeightAveraging(), saver], max_epochs=1).fit(
        normed(pl)(), loader(4)
    )
    model = normed(pl)()
    one = trainer(pl, tmp_path, callbacks=[pl.callbacks.WeightAveraging()])
    one.test(model, loader(2), ckpt_path=saver.best_model_path, verbose=False)
    return seen(one)


@parity
def test_two_fits_of_one_trainer(pl: Any, tmp_path: Path) -> Any:
    model = normed(pl, dropout=0)()
    one = trainer(
        pl, tmp_path, callbacks=[pl.callbacks.EMAWeightAveraging(decay=0.5)], max_epochs=1
    )
    one.fit(model, loader(4), loader(1))
    one.fit_loop.max_epochs = 3
    one.fit(model, loader(4), loader(1))
    return {**seen(one), "rng": None}  # Lightning draws the seed of a loader twice in a second fit


@pytest.mark.parametrize("writer", packages(), ids=lambda pl: pl.__name__)
def test_the_other_package_goes_on(tmp_path: Path, writer: Any) -> None:
    """What one has saved, the other takes up, and both end in the same place."""
    with quiet():
        torch.manual_seed(0)
        saver = writer.callbacks.ModelCheckpoint(tmp_path)
        trainer(writer, tmp_path, callbacks=[AVERAGES["ema"](writer), saver], max_epochs=2).fit(
            normed(writer, dropout=0)(), loader(4)
        )
        ends = []
        for pl in (lightning.pytorch, raylit):
            model = normed(pl, dropout=0)()
            trainer(pl, tmp_path, callbacks=[AVERAGES["ema"](pl)], max_epochs=4).fit(
                model, loader(4), ckpt_path=saver.best_model_path
            )
            ends.append(plain(model.state_dict(), tmp_path))
    assert ends[0] == ends[1]
