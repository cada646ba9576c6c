"""The life of one rank: what is called when, what is checked before, what is left after."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import Callback, EarlyStopping, ModelCheckpoint, RecoveryCheckpoint
from raylit.engine.worker import status_of
from raylit.errors import ConfigError, Stopped, Terminated
from raylit.testing import BoringDataModule, BoringModel, TinyModel
from tests import quiet

trainer = partial(quiet.trainer, limit_train_batches=1, limit_val_batches=1)


def test_the_order_of_a_life(tmp_path: Path) -> None:
    calls: list[str] = []

    def noting(cls: type, name: str, *hooks: str) -> Any:
        made = {
            hook: lambda self, *args, _hook=hook, **kwargs: calls.append(f"{name}.{_hook}")
            for hook in hooks
        }
        return type(name, (cls,), made)()

    both = ("prepare_data", "setup", "teardown")
    module = noting(
        TinyModel,
        "module",
        *both,
        "configure_model",
        "on_fit_start",
        "on_train_start",
        "on_fit_end",
    )
    data = noting(BoringDataModule, "data", *both)
    data.random_train = data.random_val = data.random_full  # as its own setup would
    callback = noting(Callback, "callback", "setup", "teardown", "on_fit_start", "on_fit_end")
    trainer(tmp_path, callbacks=[callback], num_sanity_val_steps=0).fit(module, datamodule=data)
    assert calls == [
        "data.prepare_data",
        "module.prepare_data",
        "data.setup",
        "callback.setup",
        "module.setup",
        "module.configure_model",
        "callback.on_fit_start",
        "module.on_fit_start",
        "module.on_train_start",
        "callback.on_fit_end",
        "module.on_fit_end",
        "data.teardown",
        "callback.teardown",
        "module.teardown",
    ]


class NoStep(pl.LightningModule):
    def configure_optimizers(self) -> Any: ...

    def test_dataloader(self) -> Any: ...


class NoOptimizer(pl.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Any: ...


class Manual(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("fn", "module", "arguments", "message"),
    [
        ("fit", NoStep(), {}, r"NoStep has no training_step\(\), which Trainer\.fit needs"),
        ("fit", NoOptimizer(), {}, r"NoOptimizer has no configure_optimizers\(\)"),
        ("test", NoStep(), {}, r"NoStep has no test_step\(\), which Trainer\.test needs"),
        (
            "fit",
            Manual(),
            {"gradient_clip_val": 1.0},
            r"call self\.clip_gradients\(optimizer, \.\.\.\)",
        ),
        ("fit", Manual(), {"accumulate_grad_batches": 2}, "step the optimizer every n batches"),
        (
            "fit",
            TinyModel(),
            {"callbacks": [EarlyStopping("x"), EarlyStopping("x")]},
            "Two callbacks store their state under the same name",
        ),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_started(
    tmp_path: Path, fn: str, module: Any, arguments: dict[str, Any], message: str
) -> None:
    started: list[str] = []
    module.prepare_data = lambda: started.append("prepare_data")
    with pytest.raises(ConfigError, match=message):
        getattr(trainer(tmp_path, **arguments), fn)(module)
    assert started == []


def test_hyperparameters_of_both_must_agree(tmp_path: Path) -> None:
    class Data(BoringDataModule):
        def __init__(self, batch_size: int) -> None:
            super().__init__()
            self.save_hyperparameters()

    with pytest.raises(
        ConfigError, match="'batch_size' is 3 in the datamodule and 4 in the module"
    ):
        trainer(tmp_path).fit(TinyModel(4), datamodule=Data(3))
    trainer(tmp_path).fit(TinyModel(4), datamodule=Data(4))


def test_callbacks_of_the_module_stand_in_for_the_trainers(tmp_path: Path) -> None:
    class Own(EarlyStopping):
        pass

    class Other(Callback):
        pass

    class Net(TinyModel):
        def configure_callbacks(self) -> Any:
            return [Own("val_loss"), ModelCheckpoint(tmp_path / "own")]

    one = trainer(
        tmp_path,
        callbacks=[EarlyStopping("gone"), Other(), ModelCheckpoint(tmp_path / "gone")],
        enable_checkpointing=None,
    )
    one.fit(Net())
    assert [type(callback) for callback in one.callbacks] == [
        Other,
        RecoveryCheckpoint,
        Own,
        ModelCheckpoint,
    ]
    assert (tmp_path / "own").exists() and not (tmp_path / "gone").exists()


@pytest.mark.parametrize(
    "hook",
    [
        "prepare_data",
        "setup",
        "configure_optimizers",
        "on_fit_start",
        "training_step",
        "validation_step",
        "on_train_end",
        "teardown",
    ],
)
def test_wherever_it_fails_it_is_told_and_cleaned_up(tmp_path: Path, hook: str) -> None:
    told: list[BaseException] = []

    class Listens(Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            told.append(exception)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("the user's")

    module = type("Net", (BoringModel,), {hook: fails})()
    one = trainer(tmp_path, callbacks=[Listens()])
    with pytest.raises(ZeroDivisionError, match="the user's") as caught:
        one.fit(module)
    assert told == [caught.value]
    assert caught.value.__notes__[0].startswith("(raylit) rank 0 of 1, epoch ")
    assert one.interrupted
    with pytest.warns(UserWarning, match="outside a running Trainer"):
        module.log("x", 1.0)
    setattr(type(module), hook, getattr(BoringModel, hook))
    assert trainer(tmp_path).fit(module).steps == 1, "the module can be trained anew"


def test_a_fit_in_a_thread(tmp_path: Path) -> None:
    """Where Python lets nobody handle signals."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(trainer(tmp_path).fit(TinyModel())))
    thread.start()
    thread.join(60)
    assert found[0].steps == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError(), "failed"),
        (KeyboardInterrupt(), "killed"),
        (Terminated(), "killed"),
        (SystemExit(1), "killed"),
        (Stopped(), "success"),
    ],
)
def test_how_loggers_are_told_it_ended(error: BaseException, status: str) -> None:
    assert status_of(error) == status


def test_the_result_says_what_came_of_it(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path / "kept", monitor="val_loss", save_last=True)
    result = trainer(tmp_path, callbacks=[saver], enable_checkpointing=None, max_epochs=2).fit(
        TinyModel()
    )
    assert (result.epochs, result.steps, len(result.history)) == (2, 2, 2)
    assert result.best_model_path == saver.best_model_path
    assert result.best_model_score == min(row["val_loss"] for row in result.history)
    assert result.last_model_path == str(tmp_path / "kept" / "last.ckpt")
    assert result.metrics == {
        "train_loss": result.metrics["train_loss"],
        "val_loss": result.history[-1]["val_loss"],
    }
    assert result.state is None


def test_deterministic_and_benchmark_hold_wherever_the_job_runs(tmp_path: Path) -> None:
    """Also in a process in which no Trainer was made, as that of a Ray worker."""
    seen: list[tuple[bool, bool]] = []

    class Looks(Callback):
        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            seen.append(found())

    def found() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark

    here = found()
    own = trainer(tmp_path, deterministic=True, benchmark=True, callbacks=[Looks()])
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False
    try:
        own.fit(TinyModel(), datamodule=BoringDataModule())
        assert seen == [(True, True)]
        assert found() == (False, False)
    finally:
        torch.use_deterministic_algorithms(here[0])
        torch.backends.cudnn.benchmark = here[1]
