from __future__ import annotations

import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.errors import ConfigError
from raylit.testing import BoringModel, TinyModel
from tests.quiet import BARE


def test_device_and_dtype_are_those_of_the_parameters() -> None:
    module = BoringModel()
    assert (module.device.type, module.dtype, module.on_gpu) == ("cpu", torch.float32, False)
    assert module.double().dtype == torch.float64
    assert module.to("meta").device.type == "meta"
    empty = pl.LightningModule()
    assert (empty.device.type, empty.dtype) == ("cpu", torch.float32)


def test_without_a_trainer() -> None:
    module = BoringModel()
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        _ = module.trainer
    with pytest.warns(UserWarning, match="outside a running Trainer"):
        module.log("x", 1.0)


def test_freeze_and_unfreeze_give_the_module_back() -> None:
    module = BoringModel()
    assert module.freeze() is module
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert module.unfreeze().training
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_predict_step_is_forward() -> None:
    module, batch = BoringModel(), torch.ones(1, 32)
    assert torch.equal(module.predict_step(batch, 0), module(batch))


def test_after_a_fit_a_module_pickles_without_its_trainer(tmp_path: Path) -> None:
    trainer, module = (
        pl.Trainer(max_epochs=1, limit_train_batches=1, default_root_dir=tmp_path, **BARE),
        TinyModel(),
    )
    trainer.fit(module)
    assert module.trainer is trainer
    copied = pickle.loads(pickle.dumps(module))
    assert torch.equal(copied.layer.weight, module.layer.weight)
    with pytest.raises(RuntimeError):
        _ = copied.trainer


def test_a_module_does_not_keep_its_trainer_alive(tmp_path: Path) -> None:
    trainer, module = (
        pl.Trainer(max_epochs=1, limit_train_batches=1, default_root_dir=tmp_path, **BARE),
        TinyModel(),
    )
    trainer.fit(module)
    watch = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert watch() is None
    with pytest.raises(RuntimeError):
        _ = module.trainer


def test_children_get_the_trainer_too(tmp_path: Path) -> None:
    class Outer(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TinyModel()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert self.inner.trainer is self.trainer
            assert self.inner.global_step == self.global_step
            return super().training_step(batch, batch_idx)

    trainer = pl.Trainer(
        max_epochs=1, limit_train_batches=2, limit_val_batches=0, default_root_dir=tmp_path, **BARE
    )
    trainer.fit(Outer())
    assert trainer.global_step == 2


@pytest.mark.parametrize("algorithm", ["norm", "value", None])
def test_gradients_are_clipped(tmp_path: Path, algorithm: str | None) -> None:
    sizes: list[float] = []

    class Clips(TinyModel):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.layer.weight.grad.mul_(100)  # type: ignore[union-attr]

        def on_train_batch_end(self, *args: Any) -> None:
            gradients = torch.cat([parameter.grad.flatten() for parameter in self.parameters()])  # type: ignore[union-attr]
            sizes.append(float(gradients.abs().max() if algorithm == "value" else gradients.norm()))

    limits = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 0}
    trainer = pl.Trainer(
        gradient_clip_val=0.5,
        gradient_clip_algorithm=algorithm,
        default_root_dir=tmp_path,
        **limits,
        **BARE,
    )
    trainer.fit(Clips())
    assert sizes == pytest.approx([0.5, 0.5], rel=1e-4)


def test_strict_loading_is_said_in_one_place(tmp_path: Path) -> None:
    trainer = pl.Trainer(max_epochs=1, limit_train_batches=1, default_root_dir=tmp_path, **BARE)
    trainer.fit(TinyModel())
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    class Strict(TinyModel):
        def __init__(self) -> None:
            super().__init__()
            self.strict_loading = True

    with pytest.raises(ConfigError, match="disagree"):
        Strict.load_from_checkpoint(tmp_path / "one.ckpt", strict=False)
    assert Strict.load_from_checkpoint(tmp_path / "one.ckpt", strict=True).strict_loading
