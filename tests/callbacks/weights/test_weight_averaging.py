from __future__ import annotations

import copy
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import (
    AveragedModel,
    get_ema_avg_fn,
    get_ema_multi_avg_fn,
    get_swa_multi_avg_fn,
)

import raylit as pl
from raylit.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from raylit.callbacks.weights.weight_averaging import Average
from raylit.errors import ConfigError
from raylit.testing import TinyModel
from tests.lazy import lightning
from tests.quiet import BARE, UNLOGGED
from tests.ranks import run_on_two_ranks


class Model(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Identity()
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(super().forward(x))
        return out


def fit(folder: Path | str, *callbacks: Any, ckpt_path: Any = None, **arguments: Any) -> Model:
    torch.manual_seed(0)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings = {
        "max_epochs": 2,
        "default_root_dir": folder,
        "enable_checkpointing": saves,
        **arguments,
    }
    model = Model()
    pl.Trainer(**UNLOGGED, callbacks=list(callbacks), **settings).fit(model, ckpt_path=ckpt_path)
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["WeightAveraging", "EMAWeightAveraging"])
def test_arguments(name: str) -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (getattr(pl.callbacks, name), getattr(lightning.pytorch.callbacks, name))
    )
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values()
    ]


def test_arguments_that_are_wrong() -> None:
    for arguments in (
        {"avg_fns": 1},
        {"avg_fn": get_ema_avg_fn(), "multi_avg_fn": get_ema_multi_avg_fn()},
    ):
        with pytest.raises(ConfigError, match="AveragedModel"):
            WeightAveraging(**arguments)
    with pytest.raises(ConfigError, match="its own avg_fn"):
        EMAWeightAveraging(avg_fn=get_ema_avg_fn())
    with pytest.raises(ConfigError, match="not between 0 and 1"):
        EMAWeightAveraging(decay=1.5)


@pytest.mark.parametrize(
    "arguments", [(1, None, None), (3, None, None), (2, 3, None), (0, None, 1), (2, 4, 2)]
)
def test_updates_are_due_as_in_lightning(arguments: Any) -> None:
    settings = dict(
        zip(
            ("update_every_n_steps", "update_starting_at_step", "update_starting_at_epoch"),
            arguments,
            strict=True,
        )
    )
    ours, theirs = (
        EMAWeightAveraging(**settings),
        lightning.pytorch.callbacks.EMAWeightAveraging(**settings),
    )
    for number in range(9):
        assert ours.should_update(step_idx=number) == theirs.should_update(step_idx=number)
        assert ours.should_update(epoch_idx=number) == theirs.should_update(epoch_idx=number)


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_buffers": True},
        {"use_buffers": False},
        {"use_buffers": True, "avg_fn": get_ema_avg_fn(0.9)},
        {"use_buffers": True, "multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        {"use_buffers": False, "multi_avg_fn": get_swa_multi_avg_fn()},
    ],
    ids=lambda arguments: "-".join(map(str, arguments.values()))[:16],
)
def test_the_average_is_that_of_torch(arguments: Any) -> None:
    model = Model()
    ours, theirs = (kind(model, **arguments) for kind in (Average, AveragedModel))
    for _ in range(4):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.add_(1 if tensor.dtype == torch.int64 else torch.rand_like(tensor))
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert same(ours.state_dict(), theirs.state_dict())


def test_validation_sees_the_average_and_training_does_not(tmp_path: Path) -> None:
    class Watch(Callback):
        def __init__(self) -> None:
            self.trained: list[Any] = []
            self.validated: list[Any] = []
            self.after: list[Any] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.trained.append(weights(pl_module))

        def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            self.validated.append(weights(pl_module))

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.after.append(weights(pl_module))

    watch = Watch()
    end = weights(fit(tmp_path, WeightAveraging(), watch, num_sanity_val_steps=0))
    mean = torch.stack([one["layer.weight"] for one in watch.trained[:4]]).mean(0)
    torch.testing.assert_close(watch.validated[0]["layer.weight"], mean)
    assert same(watch.after[0], watch.trained[3])
    assert same(end, watch.validated[-1])


@pytest.mark.parametrize("hook", ["on_validation_batch_end", "on_exception"])
def test_what_is_saved_in_validation_resumes_exactly(tmp_path: Path, hook: str) -> None:
    """Also while module and average are exchanged."""
    path = tmp_path / "one.ckpt"

    class Saves(Callback):
        def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                if hook == "on_exception":
                    raise ZeroDivisionError
                trainer.save_checkpoint(path)

        def on_exception(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(path)

    whole = weights(fit(tmp_path, EMAWeightAveraging(decay=0.9), max_epochs=3))
    callbacks = [EMAWeightAveraging(decay=0.9), Saves()]
    if hook == "on_exception":
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path, *callbacks, max_epochs=3)
    else:
        fit(tmp_path, *callbacks, max_epochs=3)
    assert same(
        weights(fit(tmp_path, EMAWeightAveraging(decay=0.9), max_epochs=3, ckpt_path=path)), whole
    )


@pytest.mark.parametrize("batches", [2, 3, 5, 8])
@pytest.mark.parametrize(
    "arguments", [{}, {"decay": 0.8, "update_every_n_steps": 3}, {"use_buffers": False}], ids=str
)
def test_a_fit_that_goes_on_ends_as_one_that_never_stopped(
    tmp_path: Path, batches: int, arguments: dict[str, Any]
) -> None:
    path = tmp_path / "one.ckpt"

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.progress.total_batches == batches:
                trainer.save_checkpoint(path)

    kind = EMAWeightAveraging if "decay" in arguments else WeightAveraging
    whole = weights(fit(tmp_path, kind(**arguments), Saves(), max_epochs=3))
    saved = torch.load(path, weights_only=True)
    assert set(saved["averaging_state"]) == {"n_averaged"}
    assert not same(saved["state_dict"], saved["current_model_state"])
    assert same(weights(fit(tmp_path, kind(**arguments), max_epochs=3, ckpt_path=path)), whole)


def test_a_callback_forgets_an_earlier_trainer(tmp_path: Path) -> None:
    average = WeightAveraging()
    first = weights(fit(tmp_path, average))
    assert same(weights(fit(tmp_path, average)), first)


def test_a_module_without_parts_until_configure_model(tmp_path: Path) -> None:
    """`configure_model` is called once, and what it makes is averaged."""

    class Late(Model):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            del self.norm

        def configure_model(self) -> None:
            self.calls += 1
            self.norm = nn.BatchNorm1d(2)

    model = Late()
    pl.Trainer(
        **BARE,
        callbacks=[WeightAveraging()],
        max_epochs=1,
        default_root_dir=tmp_path,
    ).fit(model)
    assert model.calls == 1


def test_it_is_small_when_it_travels(tmp_path: Path) -> None:
    average = EMAWeightAveraging()
    fit(tmp_path, average)
    assert len(pickle.dumps(average)) < 1000


def main(folder: str) -> dict[str, Any]:
    saver = ModelCheckpoint(f"{folder}/kept", save_top_k=-1)
    whole = weights(fit(folder, EMAWeightAveraging(decay=0.7), saver, max_epochs=2))
    again = weights(
        fit(
            folder,
            EMAWeightAveraging(decay=0.7),
            max_epochs=2,
            ckpt_path=f"{folder}/kept/epoch=0-step=2.ckpt",
        )
    )
    return {"whole": whole, "again": again}


def test_two_ranks_have_one_average(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(main, tmp_path)
    for name in ("layer.weight", "layer.bias", "norm.weight"):
        assert torch.equal(zero["whole"][name], one["whole"][name])
    assert same(zero["whole"], zero["again"])
