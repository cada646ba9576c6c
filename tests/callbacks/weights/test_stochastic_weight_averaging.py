from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import raylit as pl
from raylit.callbacks import Callback, ModelCheckpoint, StochasticWeightAveraging
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

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.8)]


class Ends(Callback):
    """Keeps the weights with which each epoch begins."""

    def __init__(self) -> None:
        self.begins: list[Tensor] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.begins.append(pl_module.layer.weight.detach().clone())


def fit(
    folder: Path | str, *callbacks: Any, ckpt_path: Any = None, model: Any = None, **arguments: Any
) -> Any:
    torch.manual_seed(0)
    model = model or Model()
    settings = {
        "max_epochs": 4,
        "default_root_dir": folder,
        "enable_checkpointing": False,
        **arguments,
    }
    trainer = pl.Trainer(**UNLOGGED, callbacks=list(callbacks), **settings)
    trainer.fit(model, ckpt_path=ckpt_path)
    return model


def make(**arguments: Any) -> StochasticWeightAveraging:
    return StochasticWeightAveraging(
        **{"swa_lrs": 0.05, "swa_epoch_start": 2, "annealing_epochs": 2, **arguments}
    )


def tensors(model: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def test_arguments() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (
            StochasticWeightAveraging,
            lightning.pytorch.callbacks.StochasticWeightAveraging,
        )
    )
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values()
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"swa_lrs": 1}, "swa_lrs=1"),
        ({"swa_lrs": []}, r"swa_lrs=\[\]"),
        ({"swa_epoch_start": 0}, "swa_epoch_start=0"),
        ({"swa_epoch_start": 1.1}, "swa_epoch_start=1.1"),
        ({"annealing_strategy": "log"}, "annealing_strategy='log'"),
        ({"annealing_epochs": -1}, "annealing_epochs=-1"),
        ({"avg_fn": "mean"}, "avg_fn='mean'"),
        ({"device": 0}, "device=0"),
    ],
)
def test_arguments_that_are_wrong(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make(**arguments)


def test_what_it_cannot_work_with_is_found_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 learning rates, but the optimizer 1"):
        fit(tmp_path, make(swa_lrs=[0.1, 0.2]))
    with pytest.raises(ConfigError, match="max_epochs, which is unlimited"):
        fit(tmp_path, make(swa_epoch_start=0.5), max_epochs=-1, max_steps=2)


@pytest.mark.filterwarnings("error:Epoch 4 ended after")
def test_the_module_has_the_mean_and_its_statistics(tmp_path: Path) -> None:
    ends = Ends()
    model = fit(tmp_path, make(), ends)
    assert len(ends.begins) == 5
    torch.testing.assert_close(model.layer.weight, torch.stack(ends.begins[1:4]).mean(0))
    with_torch = Model()
    with_torch.load_state_dict(model.state_dict())
    update_bn(model.train_dataloader(), with_torch)
    for name, value in with_torch.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


class Shorter(list[Any]):
    """Says that it has one batch more than it gives."""

    def __len__(self) -> int:
        return super().__len__() + 1


class OfShorter(Model):
    def train_dataloader(self) -> Any:
        return Shorter(super().train_dataloader())


@pytest.mark.filterwarnings("ignore:Epoch")
def test_an_epoch_for_batch_norm_that_ends_early_takes_no_step(tmp_path: Path) -> None:
    ends = Ends()
    model = fit(tmp_path, make(), ends, model=OfShorter())
    assert torch.equal(model.layer.weight, ends.begins[-1])
    torch.testing.assert_close(model.layer.weight, torch.stack(ends.begins[1:4]).mean(0))


class WithoutNorm(TinyModel):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("kind", [Model, WithoutNorm])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"every_n_train_steps": 4},
        {"every_n_epochs": 2},
        {"save_top_k": -1},
        {"save_top_k": 0, "save_last": True},
        {"monitor": "val_loss", "save_last": True},
    ],
    ids=str,
)
def test_the_newest_checkpoint_has_the_mean(
    tmp_path: Path, arguments: dict[str, Any], kind: Any
) -> None:
    saver = ModelCheckpoint(tmp_path / "kept", **arguments)
    model = fit(tmp_path, make(), saver, enable_checkpointing=True, model=kind())
    path = saver.last_model_path or saver.best_model_path
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert {name: value.tolist() for name, value in saved.items()} == tensors(model)
    assert len({*saver.best_k_models, saver.best_model_path} - {""}) <= 5


def test_checkpoints_kept_for_their_value_stay(tmp_path: Path) -> None:
    """The mean has no value of the metric, where there is no extra epoch."""
    saver = ModelCheckpoint(tmp_path, monitor="val_loss")
    fit(tmp_path, make(), saver, enable_checkpointing=True, model=WithoutNorm())
    assert saver._is_outdated, "the mean is in no file of this one"
    best = dict(saver.best_k_models)
    assert list(best) == [saver.best_model_path]
    saved = torch.load(saver.best_model_path, weights_only=True)
    tested = WithoutNorm()
    tested.load_state_dict(saved["state_dict"])
    trainer = pl.Trainer(**UNLOGGED, default_root_dir=tmp_path)
    assert trainer.validate(tested)[0]["val_loss"] == pytest.approx(float(best.popitem()[1]))
    fit(tmp_path, saver, enable_checkpointing=True, model=WithoutNorm(), max_epochs=1)
    assert not saver._is_outdated, "another fit begins without it"


@pytest.mark.parametrize("batches", [1, 3, 4, 6, 8, 11, 15, 16, 17, 19])
@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_a_fit_that_goes_on_ends_as_one_that_never_stopped(
    tmp_path: Path, batches: int, strategy: str
) -> None:
    """Also one that stopped in the epoch without learning, which begins after 16 batches."""

    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.progress.total_batches == batches:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    whole = fit(tmp_path, make(annealing_strategy=strategy), Saves())
    assert torch.load(tmp_path / "one.ckpt", weights_only=True)["global_step"] == min(batches, 16)
    again = fit(tmp_path, make(annealing_strategy=strategy), ckpt_path=tmp_path / "one.ckpt")
    assert tensors(again) == tensors(whole)
    assert again.norm.momentum == 0.1


def test_more_epochs_go_on_from_the_weights_before_the_mean(tmp_path: Path) -> None:
    """With linear annealing: the phase of the other depends on `max_epochs`, as in Lightning."""

    def fit_of(number: int, *savers: ModelCheckpoint, ckpt_path: Any = None) -> Any:
        torch.manual_seed(0)
        swa = make(annealing_strategy="linear", swa_epoch_start=1)
        arguments = {"max_epochs": number, "enable_checkpointing": bool(savers)}
        return fit(tmp_path, swa, *savers, model=WithoutNorm(), ckpt_path=ckpt_path, **arguments)

    saver = ModelCheckpoint(tmp_path / "kept", save_last=True)
    whole = fit_of(4)
    mean = fit_of(2, saver)
    saved = torch.load(saver.last_model_path, weights_only=True)
    assert torch.equal(saved["state_dict"]["layer.weight"], mean.layer.weight)
    same = fit_of(2, ckpt_path=saver.last_model_path)
    assert tensors(same) == tensors(mean), "there is nothing left to do"
    assert tensors(fit_of(4, ckpt_path=saver.last_model_path)) == tensors(whole)


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_end"])
def test_an_exception_leaves_the_trainer_as_it_was(tmp_path: Path, hook: str) -> None:
    class Fails(Callback):
        def fail(self, trainer: Any, *_: Any) -> None:
            if trainer.current_epoch == 4:
                raise ZeroDivisionError

    setattr(Fails, hook, Fails.fail)
    trainer = pl.Trainer(
        **BARE,
        callbacks=[make(), Fails()],
        max_epochs=4,
        default_root_dir=tmp_path,
    )
    model = Model()
    with pytest.raises(ZeroDivisionError):
        trainer.fit(model)
    assert (trainer.max_epochs, trainer.accumulate_grad_batches, trainer.num_training_batches) == (
        4,
        1,
        4,
    )
    assert model.norm.momentum == 0.1
    assert trainer.run is not None and not trainer.run.skips_backward


def test_epochs_that_are_never_reached(tmp_path: Path) -> None:
    plain = fit(tmp_path)
    with pytest.warns(UserWarning, match="after the last of 4 epochs"):
        averaged = fit(tmp_path, make(swa_epoch_start=9))
    assert tensors(averaged) == tensors(plain)


def test_one_callback_serves_two_fits(tmp_path: Path) -> None:
    swa = make(swa_epoch_start=0.5)
    first, second = fit(tmp_path, swa), fit(tmp_path, swa)
    assert tensors(first) == tensors(second)
    home = make(swa_epoch_start=0.5)
    home.__dict__.update(pickle.loads(pickle.dumps(swa.__getstate__())))
    assert home.state_dict()["n_averaged"] == 3


def main(folder: str) -> Any:
    model = fit(folder, make())
    return model.state_dict()


def test_two_ranks_end_with_the_same_weights(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(main, tmp_path)
    for name in ("layer.weight", "layer.bias", "norm.weight", "norm.bias"):
        assert torch.equal(zero[name], one[name])
    # Each rank goes once more through its own half of the data
    assert zero["norm.num_batches_tracked"] == 2
