from __future__ import annotations

import copy
import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import raylit as pl
from raylit.callbacks import BackboneFinetuning, BaseFinetuning, Callback
from raylit.errors import ConfigError
from raylit.testing import TinyModel
from tests.lazy import lightning
from tests.quiet import BARE, UNLOGGED
from tests.ranks import run_on_two_ranks


class Model(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Identity()
        self.backbone = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(self.backbone(x))
        return out

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam((one for one in self.parameters() if one.requires_grad), lr=0.01)


class FreezesAll(BaseFinetuning):
    """Also batch norm, whose statistics stand still until epoch 1.

    From epoch 2 on the layer is frozen instead.
    """

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone, train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, train_bn=False)
        if epoch == 2:
            self.freeze(pl_module.layer)


def fit(folder: Path | str, *callbacks: Any, ckpt_path: Any = None, max_epochs: int = 3) -> Model:
    torch.manual_seed(0)
    model = Model()
    trainer = pl.Trainer(
        **BARE,
        callbacks=list(callbacks),
        max_epochs=max_epochs,
        default_root_dir=folder,
    )
    trainer.fit(model, ckpt_path=ckpt_path)
    return model


def state(model: Model) -> list[Any]:
    tensors = {name: value.tolist() for name, value in model.state_dict().items()}
    norm = model.backbone[1]
    assert isinstance(norm, nn.BatchNorm1d)
    return [tensors, [one.requires_grad for one in model.parameters()], norm.track_running_stats]


def test_arguments() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (BackboneFinetuning, lightning.pytorch.callbacks.BackboneFinetuning)
    )
    assert [p.name for p in ours.values()] == [p.name for p in theirs.values()]
    assert [p.default for p in ours.values() if p.name != "lambda_func"] == [
        p.default for p in theirs.values() if p.name != "lambda_func"
    ]
    assert ours["lambda_func"].default(3) == theirs["lambda_func"].default(3)


def test_no_backbone(tmp_path: Path) -> None:
    trainer = pl.Trainer(
        **UNLOGGED, callbacks=BackboneFinetuning(), default_root_dir=tmp_path, max_epochs=1
    )
    with pytest.raises(ConfigError, match=r"TinyModel\.backbone"):
        trainer.fit(TinyModel())


def test_methods_to_override(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError):
        fit(tmp_path, BaseFinetuning())


def test_parameters_of_equal_values_are_not_the_same() -> None:
    held, new = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([held], lr=0.1)
    assert BaseFinetuning.filter_on_optimizer(optimizer, [new])[0] is new
    with pytest.warns(UserWarning, match="1 of the 2 parameters"):
        assert [id(one) for one in BaseFinetuning.filter_on_optimizer(optimizer, [held, new])] == [
            id(new)
        ]


@pytest.mark.parametrize("batches", [3, 4, 6, 8, 9, 11])
@pytest.mark.parametrize(
    "make", [lambda: BackboneFinetuning(1), FreezesAll], ids=["backbone", "all"]
)
def test_a_fit_that_goes_on_ends_as_one_that_never_stopped(
    tmp_path: Path, batches: int, make: Any
) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.progress.total_batches == batches:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    whole = state(fit(tmp_path, make(), Saves()))
    assert torch.load(tmp_path / "one.ckpt", weights_only=True)["global_step"] == batches
    assert state(fit(tmp_path, make(), ckpt_path=tmp_path / "one.ckpt")) == whole


def test_a_fit_that_begins_after_the_epoch_unfreezes_at_once(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    class HeadOnly(BackboneFinetuning):
        state_key = "HeadOnly"  # type: ignore[assignment]

    fit(tmp_path, HeadOnly(9), Saves(), max_epochs=3)
    model = fit(tmp_path, BackboneFinetuning(1), ckpt_path=tmp_path / "2.ckpt", max_epochs=5)
    assert all(one.requires_grad for one in model.parameters())


def test_it_says_the_learning_rates(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("raylit")
    log.addHandler(caplog.handler)
    try:
        fit(tmp_path, BackboneFinetuning(1, verbose=True, rounding=3))
    finally:
        log.removeHandler(caplog.handler)
    said = [record.message for record in caplog.records if "Backbone" in record.message]
    assert said == ["Current lr: 0.01, Backbone lr: 0.001", "Current lr: 0.01, Backbone lr: 0.002"]


class Watch(Callback):
    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(copy.deepcopy(pl_module.backbone[0].weight.detach()))


def main(folder: str) -> Any:
    watch = Watch()
    model = fit(folder, BackboneFinetuning(1), watch)
    own = fit(folder, UnfreezesByHand())
    return watch.weights, model.layer.weight.detach(), own.backbone[0].weight.detach()


class UnfreezesByHand(Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        pl_module.backbone.requires_grad_(False)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            pl_module.backbone.requires_grad_(True)
            trainer.optimizers[0].add_param_group(
                {"params": list(pl_module.backbone.parameters()), "lr": 0.01}
            )


def test_what_is_unfrozen_is_the_same_on_both_ranks(tmp_path: Path) -> None:
    """Data parallelism synchronizes its gradients from then on."""
    (zero, layer, own), (one, other_layer, other_own) = run_on_two_ranks(main, tmp_path)
    assert all(torch.equal(*pair) for pair in zip(zero, one, strict=True))
    assert torch.equal(layer, other_layer)
    assert torch.equal(own, other_own)
    start = torch.manual_seed(0) and Model().backbone[0].weight
    assert torch.equal(zero[0], start)
    assert not torch.equal(zero[1], zero[0])
