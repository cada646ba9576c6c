from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from raylit.errors import ConfigError
from raylit.testing import TinyModel
from tests.lazy import lightning
from tests.quiet import UNLOGGED


def fit(folder: Path, *callbacks: Any, ckpt_path: Any = None, **arguments: Any) -> pl.Trainer:
    torch.manual_seed(0)
    trainer = pl.Trainer(
        **UNLOGGED,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **arguments,
    )
    model = TinyModel()
    model.dropout = torch.nn.Identity()
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


def test_arguments() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (
            GradientAccumulationScheduler,
            lightning.pytorch.callbacks.GradientAccumulationScheduler,
        )
    )
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values()
    ]
    with pytest.raises(TypeError, match="says nothing"):
        GradientAccumulationScheduler({})
    for epoch in (-1, 1.5, "1"):
        with pytest.raises(ConfigError, match="keys of scheduling"):
            GradientAccumulationScheduler({epoch: 2})  # type: ignore[dict-item]
    for number in (0, -2, 1.5):
        with pytest.raises(ConfigError, match="values of scheduling"):
            GradientAccumulationScheduler({0: number})  # type: ignore[dict-item]


@pytest.mark.parametrize("scheduling", [{0: 2}, {4: 2}, {5: 4, 1: 2}, {0: 1, 3: 1}])
def test_numbers_are_those_of_lightning(scheduling: dict[int, int]) -> None:
    ours, theirs = (
        GradientAccumulationScheduler(scheduling),
        lightning.pytorch.callbacks.GradientAccumulationScheduler(dict(scheduling)),
    )
    assert [ours.get_accumulate_grad_batches(n) for n in range(8)] == [
        theirs.get_accumulate_grad_batches(n) for n in range(8)
    ]
    assert ours.going_to_accumulate_grad_batches() == theirs.going_to_accumulate_grad_batches()
    assert 0 in ours.scheduling


def test_what_it_cannot_work_with_is_found_before_data_is_read(tmp_path: Path) -> None:
    class ByHand(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def train_dataloader(self) -> Any:
            raise AssertionError

    trainer = pl.Trainer(
        **UNLOGGED,
        callbacks=GradientAccumulationScheduler({1: 2}),
        default_root_dir=tmp_path,
        max_epochs=1,
    )
    with pytest.raises(ConfigError, match="manual optimization"):
        trainer.fit(ByHand())
    with pytest.raises(ConfigError, match="accumulate_grad_batches=3"):
        fit(tmp_path, GradientAccumulationScheduler({1: 2}), accumulate_grad_batches=3)


def test_overridden_steps_are_warned_about(tmp_path: Path) -> None:
    class Steps(TinyModel):
        def optimizer_step(self, *args: Any) -> None:
            super().optimizer_step(*args)

    trainer = pl.Trainer(
        **UNLOGGED,
        callbacks=GradientAccumulationScheduler({0: 2}),
        default_root_dir=tmp_path,
        max_epochs=1,
    )
    with pytest.warns(UserWarning, match="optimizer_step is called for each optimizer step"):
        trainer.fit(Steps())


def test_one_callback_serves_two_fits(tmp_path: Path) -> None:
    scheduler = GradientAccumulationScheduler({0: 4, 1: 2})
    assert fit(tmp_path, scheduler, max_epochs=2).global_step == 1 + 2
    trainer = fit(tmp_path, scheduler, max_epochs=1)
    assert trainer.accumulate_grad_batches == 4
    assert trainer.global_step == 1


@pytest.mark.parametrize("batches", [5, 6, 7])
def test_a_fit_that_goes_on_within_an_epoch_accumulates_as_before(
    tmp_path: Path, batches: int
) -> None:
    """Also in the middle of an accumulation: its first batch is then trained on anew.

    The gradients of that batch are not in the checkpoint.
    """

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.progress.total_batches == batches:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    whole = fit(tmp_path, GradientAccumulationScheduler({1: 2}), Saves(), max_epochs=3)
    again = fit(
        tmp_path,
        GradientAccumulationScheduler({1: 2}),
        ckpt_path=tmp_path / "one.ckpt",
        max_epochs=3,
    )
    assert whole.global_step == again.global_step == 4 + 2 + 2
    if batches == 6:  # the first step of the epoch is done
        assert whole.lightning_module is not None
        assert again.lightning_module is not None
        assert torch.equal(
            *(one.lightning_module.state_dict()["layer.weight"] for one in (whole, again))
        )


def test_checkpoints_after_each_epoch_resume_exactly(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "kept", save_top_k=-1)
    whole = fit(tmp_path, GradientAccumulationScheduler({1: 3}), saver, max_epochs=3)
    for path in sorted((tmp_path / "kept").iterdir()):
        again = fit(tmp_path, GradientAccumulationScheduler({1: 3}), ckpt_path=path, max_epochs=3)
        assert again.global_step == whole.global_step == 4 + 2 + 2
