"""Precision, random numbers, and what can be read off Trainer, module and datamodule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.harness import loader, model_class, parity, seen, traced_objects, trainer


@parity
@pytest.mark.parametrize(
    "precision", [None, 32, "32-true", 64, "64-true", "bf16-mixed", "bf16", "bf16-true", "16-true"]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_precision(pl: Any, tmp_path: Path, precision: Any, accumulate: int) -> Any:
    found: list[Any] = []

    class Typed(model_class(pl)):  # type: ignore[misc]
        def configure_model(self) -> None:
            found.append(["configure_model", str(torch.zeros(1).dtype)])

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = self(batch)
            found.append(
                [
                    str(batch.dtype),
                    str(out.dtype),
                    str(self.dtype),
                    str(torch.zeros(1).dtype),
                    torch.is_autocast_enabled("cpu"),
                ]
            )
            loss = (out - 1).square().mean()
            self.log("loss", loss, on_step=True, on_epoch=True)
            return loss

        def on_after_backward(self) -> None:
            found.append([str(self.layer.weight.grad.dtype), torch.is_autocast_enabled("cpu")])

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            found.append([str(batch.dtype), str(self(batch).dtype)])
            self.log("val_loss", self.loss(batch))

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return self(batch)

    one, model = (
        trainer(
            pl, tmp_path, precision=precision, max_epochs=2, accumulate_grad_batches=accumulate
        ),
        Typed(),
    )
    one.fit(model, loader(3), loader(2))
    return {
        "found": found,
        "precision": one.precision,
        "predictions": one.predict(model, loader(1)),
        **seen(one, model),
    }


@parity
@pytest.mark.parametrize("workers", [True, False])
def test_seed_everything(pl: Any, tmp_path: Path, workers: bool) -> Any:
    import os
    import random

    import numpy as np

    returned = pl.seed_everything(7, workers=workers)
    found = [
        returned,
        torch.rand(2),
        random.random(),
        np.random.rand(),
        os.environ["PL_GLOBAL_SEED"],
        os.environ["PL_SEED_WORKERS"],
    ]
    one = trainer(pl, tmp_path)
    one.fit(model_class(pl)(), loader(3, shuffle=True, num_workers=1 if workers else 0), loader(2))
    return {"found": found, "again": pl.seed_everything(verbose=False), **seen(one)}


@parity
def test_the_random_state_is_the_same_after_a_sanity_check(pl: Any, tmp_path: Path) -> Any:
    found: list[Any] = []

    class Draws(model_class(pl)):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            torch.rand(3)

        def on_train_start(self) -> None:
            found.append(torch.rand(1))

    for steps in (0, 2):
        torch.manual_seed(0)
        one = trainer(pl, tmp_path, max_epochs=1, num_sanity_val_steps=steps)
        one.fit(Draws(), loader(1), loader(2))
    return {"found": found}


SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_steps": 5},
    {"max_epochs": 3, "min_steps": 2},
    {"max_time": "00:00:01:00"},
    {"max_time": {"minutes": 1}},
    {"fast_dev_run": 3},
    {"limit_train_batches": 0.5, "limit_val_batches": 3},
    {"overfit_batches": 2},
    {"val_check_interval": 10},
    {"val_check_interval": 0.25},
    {"log_every_n_steps": 5},
    {"num_sanity_val_steps": -1},
    {"gradient_clip_val": 1, "gradient_clip_algorithm": "value"},
    {"accumulate_grad_batches": 4},
    {"max_epochs": -1},
]
READ = [
    "max_epochs",
    "min_epochs",
    "max_steps",
    "min_steps",
    "limit_train_batches",
    "limit_val_batches",
    "limit_test_batches",
    "limit_predict_batches",
    "overfit_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "log_every_n_steps",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "reload_dataloaders_every_n_epochs",
    "fast_dev_run",
    "current_epoch",
    "global_step",
    "should_stop",
    "sanity_checking",
    "training",
    "validating",
    "testing",
    "predicting",
    "evaluating",
    "is_global_zero",
    "global_rank",
    "local_rank",
    "node_rank",
    "num_nodes",
    "world_size",
    "interrupted",
    "received_sigterm",
    "num_training_batches",
    "is_last_batch",
]


def plain_value(value: Any) -> Any:
    return value.value if hasattr(value, "value") and not isinstance(value, torch.Tensor) else value


@parity
@pytest.mark.parametrize("arguments", SETTINGS, ids=lambda arguments: "-".join(arguments) or "none")
def test_what_a_trainer_says_of_itself(pl: Any, tmp_path: Path, arguments: dict[str, Any]) -> Any:
    one = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        **arguments,
    )
    kinds = {
        pl.callbacks.Timer: "timer",
        pl.callbacks.ModelSummary: "summary",
        pl.callbacks.ProgressBar: "bar",
    }
    callbacks = [
        next((name for kind, name in kinds.items() if isinstance(callback, kind)), "?")
        for callback in one.callbacks
    ]
    return {
        **{
            name: plain_value(getattr(one, name))
            for name in READ
            if name not in ("max_epochs", "min_epochs")
        },
        "root": one.default_root_dir,
        "log_dir": one.log_dir,
        "callbacks": sorted(callbacks),
    }


@parity
def test_what_can_be_read_in_a_hook(pl: Any, tmp_path: Path) -> Any:
    found: list[Any] = []

    class Reads(model_class(pl)):  # type: ignore[misc]
        def read(self, where: str) -> None:
            one = self.trainer
            loaders = [
                type(loader).__name__
                for loader in (one.train_dataloader, one.val_dataloaders, one.test_dataloaders)
            ]
            found.append(
                [
                    where,
                    self.current_epoch,
                    self.global_step,
                    self.global_rank,
                    self.local_rank,
                    str(self.device),
                    str(self.dtype),
                ]
            )
            found.append(
                [
                    self.on_gpu,
                    self.logger is one.logger,
                    len(self.loggers),
                    len(one.optimizers),
                    len(one.lr_scheduler_configs),
                    *loaders,
                ]
            )
            found.append([plain_value(getattr(one, name)) for name in READ])
            found.append(
                [
                    one.lightning_module is self,
                    one.model is self,
                    one.datamodule is None,
                    one.checkpoint_callback is None,
                ]
            )
            found.append(
                [
                    one.state.fn == "fit",
                    one.num_val_batches,
                    one.num_test_batches,
                    one.num_sanity_val_batches,
                ]
            )

        def setup(self, stage: str) -> None:
            self.read("setup")

        def configure_optimizers(self) -> Any:
            self.read("configure_optimizers")
            return super().configure_optimizers()

        def on_fit_start(self) -> None:
            self.read("fit start")

        def on_train_start(self) -> None:
            self.read("train start")

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.read("training_step")
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            self.read("epoch end")

        def on_fit_end(self) -> None:
            self.read("fit end")

        def teardown(self, stage: str) -> None:
            self.read("teardown")

    one = trainer(pl, tmp_path, logger=True)
    one.fit(Reads(), loader(2), loader(3))
    return {"found": found}


@parity
def test_an_unattached_module(pl: Any, tmp_path: Path) -> Any:
    model = model_class(pl)()
    with pytest.raises(RuntimeError):
        _ = model.trainer
    model.log("nothing", 1.0)
    found = [
        model.current_epoch,
        model.global_step,
        model.global_rank,
        model.local_rank,
        model.logger,
        model.loggers,
        str(model.device),
    ]
    frozen = [parameter.requires_grad for parameter in model.freeze().parameters()] + [
        model.training
    ]
    thawed = [parameter.requires_grad for parameter in model.unfreeze().parameters()] + [
        model.training
    ]
    return {"found": found, "frozen": frozen, "thawed": thawed, "hparams": dict(model.hparams)}


@parity
def test_a_datamodule_is_set_up_for_each_call(pl: Any, tmp_path: Path) -> Any:
    trace: list[Any] = []
    module, datamodule, _ = traced_objects(
        pl, trace, train=loader(2), val=loader(1), test=loader(1), predict=loader(1)
    )
    one = trainer(pl, tmp_path, max_epochs=1)
    one.fit(module, datamodule=datamodule)
    one.validate(module, datamodule=datamodule)
    one.test(module, datamodule)
    one.predict(module, datamodule)
    return {
        "trace": [call for call in trace if call[0] == "data"],
        "text": str(datamodule) != "",
        "same": datamodule.trainer is one,
    }


@parity
def test_a_datamodule_from_datasets(pl: Any, tmp_path: Path) -> Any:
    from tests.parity.harness import Rows

    data = pl.LightningDataModule.from_datasets(
        Rows(6), [Rows(2), Rows(3)], Rows(1), {"a": Rows(2)}, batch_size=2
    )
    loaders = [
        data.train_dataloader(),
        *data.val_dataloader(),
        data.test_dataloader(),
        data.predict_dataloader()["a"],
    ]
    return {"found": [[type(one.sampler).__name__, one.batch_size, list(one)] for one in loaders]}


@parity
@pytest.mark.parametrize("where", ["configure_callbacks", "configure_callbacks of the same type"])
def test_callbacks_of_the_module(pl: Any, tmp_path: Path, where: str) -> Any:
    class One(pl.Callback):  # type: ignore[misc]
        name = "trainer's"

    class Other(pl.Callback):  # type: ignore[misc]
        name = "other"

    class Brings(model_class(pl)):  # type: ignore[misc]
        def configure_callbacks(self) -> Any:
            mine = (One if "same" in where else Other)()
            mine.name = "module's"
            return [mine, pl.callbacks.ModelCheckpoint(tmp_path)] if "same" in where else mine

    one = trainer(pl, tmp_path, callbacks=[One()], max_epochs=1)
    one.fit(Brings(), loader(1))
    return {
        "callbacks": [
            [type(callback).__name__, getattr(callback, "name", "")] for callback in one.callbacks
        ]
    }


@parity
def test_half_precision_on_a_cpu(pl: Any, tmp_path: Path) -> Any:
    found: list[Any] = []

    class Typed(model_class(pl)):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            out = self(batch)
            found.append(str(out.dtype))
            return (out - 1).square().mean()

    one = trainer(pl, tmp_path, precision="16-mixed", max_epochs=1)
    one.fit(Typed(), loader(2))
    return {"found": found, **seen(one)}


@parity
@pytest.mark.parametrize("fn", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("where", ["setup", "on_fit_start", "prepare_data", "teardown", "step"])
def test_exceptions_everywhere(pl: Any, tmp_path: Path, fn: str, where: str) -> Any:
    if where == "on_fit_start" and fn != "fit":
        where = f"on_{'validation' if fn == 'validate' else fn}_start"
    if where == "step":
        where = {"fit": "training_step", "validate": "validation_step"}.get(fn, f"{fn}_step")

    def fails(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("the user's")

    trace: list[Any] = []
    model = type("Fails", (model_class(pl),), {where: fails})
    module, datamodule, callback = traced_objects(
        pl, trace, model, train=loader(1), val=loader(1), test=loader(1), predict=loader(1)
    )
    one = trainer(pl, tmp_path, callbacks=[callback], num_sanity_val_steps=0)
    with pytest.raises(ZeroDivisionError, match="the user's"):
        getattr(one, fn)(module, datamodule=datamodule)
    return {"trace": trace, "interrupted": one.interrupted, "training": one.training}
