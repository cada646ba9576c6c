from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import ModelCheckpoint
from raylit.errors import ConfigError
from raylit.testing import TinyModel
from tests.quiet import trainer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": -2}, "max_epochs=-2"),
        ({"max_steps": 1.5}, r"max_steps=1\.5"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0"),
        ({"log_every_n_steps": -1}, "log_every_n_steps=-1"),
        ({"precision": "8"}, "precision='8' is not known. Use one of: 16, 16-mixed"),
        ({"strategy": "dpp"}, "strategy='dpp'"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"max_failures": -1}, "max_failures=-1"),
        ({"callbacks": [3]}, "callbacks holds what is no Callback: a builtins.int"),
        (
            {"enable_checkpointing": False, "callbacks": [ModelCheckpoint()]},
            "found `ModelCheckpoint` in callbacks list",
        ),
    ],
)
def test_arguments_that_are_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, **arguments)


def test_an_argument_that_there_is_not() -> None:
    with pytest.raises(TypeError, match="max_epoch"):
        pl.Trainer(max_epoch=3)  # type: ignore[call-arg]


def test_replaced_makes_a_new_trainer_with_some_arguments_changed(tmp_path: Path) -> None:
    one = trainer(tmp_path, max_steps=5, precision="bf16")
    other = one.replaced(max_steps=7)
    assert (other.max_steps, other.precision, other.default_root_dir) == (
        7,
        "bf16-mixed",
        str(tmp_path),
    )
    assert one.max_steps == 5
    assert type(other) is pl.Trainer
    with pytest.raises(ConfigError, match=r"no argument 'max_step'\. Did you mean 'max_steps'"):
        one.replaced(max_step=7)


def test_replaced_of_a_class_with_arguments_of_its_own(tmp_path: Path) -> None:
    class Mine(pl.Trainer):
        def __init__(self, exp: str) -> None:
            super().__init__(max_steps=5, default_root_dir=tmp_path, logger=False)
            self.exp = exp

    one = Mine("a")
    other = one.replaced(max_steps=7)
    assert (type(other), other.exp, other.max_steps, one.max_steps) == (Mine, "a", 7, 5)
    assert other.progress is not one.progress
    assert one.check(TinyModel(), verbose=False).findings


def test_a_checkpoint_can_be_saved_after_the_fit(tmp_path: Path) -> None:
    one, model = trainer(tmp_path), TinyModel()
    with pytest.raises(ConfigError, match="nothing to save yet"):
        one.save_checkpoint(tmp_path / "one.ckpt")
    one.fit(model)
    one.save_checkpoint(tmp_path / "one.ckpt")
    again = trainer(tmp_path, max_epochs=2)
    again.fit(TinyModel(), ckpt_path=tmp_path / "one.ckpt")
    assert (again.current_epoch, again.global_step) == (2, 8)


def test_it_pickles_without_its_run(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    one.fit(TinyModel())
    copied = pickle.loads(pickle.dumps(one))
    assert (copied.global_step, copied.max_epochs, copied.lightning_module) == (4, 1, None)
    assert set(copied.callback_metrics) == {"train_loss", "val_loss"}


def test_metrics_are_tensors_of_the_cpu_after_a_fit(tmp_path: Path) -> None:
    one = trainer(tmp_path)
    result = one.fit(TinyModel())
    assert all(
        isinstance(value, torch.Tensor) and value.device.type == "cpu"
        for value in one.callback_metrics.values()
    )
    assert result.metrics == {name: value.item() for name, value in one.callback_metrics.items()}


def test_the_limits_may_be_set_where_lightning_keeps_them(tmp_path: Path) -> None:
    one, model = trainer(tmp_path), TinyModel()
    one.fit(model)
    one.fit_loop.max_epochs = 2
    one.fit(model)
    assert (one.current_epoch, one.max_epochs) == (2, 2)
