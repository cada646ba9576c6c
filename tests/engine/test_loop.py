"""What the loop promises beside doing what Lightning's does.

Few frames, nothing that waits, nothing left behind.
"""

from __future__ import annotations

import gc
import traceback
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import Callback
from raylit.errors import ConfigError
from raylit.testing import BoringModel, RandomDataset, TinyModel
from tests.quiet import trainer

PACKAGE = str(Path(pl.__file__).parent)


class Introduction(pl.LightningModule):
    """As in Lightning's own introduction."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(10, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).sum()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).sum())

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_loss", self.layer(batch[0]).sum())

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_introduction_runs_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loader = DataLoader(TensorDataset(torch.randn(8, 10)), batch_size=4)
    module = Introduction()
    trainer = pl.Trainer(max_epochs=2)
    trainer.fit(module, loader)
    assert trainer.validate(module, loader)[0].keys() == {"val_loss"}
    assert trainer.test(module, loader)[0].keys() == {"test_loss"}
    assert torch.cat(trainer.predict(module, loader)).shape == (8, 1)
    assert (tmp_path / "lightning_logs/version_0/checkpoints/epoch=1-step=4.ckpt").is_file()


def test_trainer_without_arguments_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    class Short(Introduction):
        def on_train_epoch_end(self) -> None:
            self.trainer.should_stop = True

    loader = DataLoader(TensorDataset(torch.randn(8, 10)), batch_size=4)
    with warnings.catch_warnings():  # only a fit has epochs to speak of
        warnings.filterwarnings("error", message="max_epochs was not set")
        trainer = pl.Trainer()
        trainer.predict(Short(), loader)
    with pytest.warns(UserWarning, match="max_epochs was not set; it is 1000"):
        trainer.fit(Short(), loader)
    assert trainer.global_step == 2


@pytest.mark.parametrize("fn", ["fit", "validate", "test", "predict"])
def test_without_data_the_error_says_how_to_give_it(tmp_path: Path, fn: str) -> None:
    ways = ["DataLoader(...)", "datamodule=", "_dataloader() in the LightningModule"]
    with pytest.raises(ConfigError) as caught:
        getattr(trainer(tmp_path), fn)(Introduction())
    assert [way for way in ways if way not in str(caught.value)] == []
    assert f"Trainer.{fn}" in str(caught.value)
    assert not list(tmp_path.iterdir())


# ---- frames ----


@pytest.mark.parametrize(
    "arguments",
    [{}, {"logger": True, "enable_checkpointing": True, "enable_progress_bar": True}],
    ids=["bare", "all on"],
)
def test_at_most_six_frames_from_fit_to_backward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any]
) -> None:
    seen: list[list[str]] = []
    backward = Tensor.backward

    def spy(self: Tensor, *args: Any, **kwargs: Any) -> None:
        seen.append(
            [
                frame.name
                for frame in traceback.extract_stack()
                if frame.filename.startswith(PACKAGE)
            ]
        )
        backward(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "backward", spy)
    trainer(tmp_path, **arguments).fit(TinyModel())
    assert len(seen) > 1
    assert {tuple(names) for names in seen} == {
        ("fit", "launch", "run_job", "fit", "train_epoch", "train_batch")
    }


# ---- nothing waits ----


class NothingWaits(TorchDispatchMode):
    """Notes whatever would bring a value from the device to the host.

    Operations, and methods that on a CPU need none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.patches = pytest.MonkeyPatch()

    def __enter__(self) -> Any:
        for name in ("tolist", "cpu", "numpy"):
            self.patches.setattr(
                Tensor, name, self._noting(name, getattr(Tensor, name)), raising=False
            )
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        self.patches.undo()
        super().__exit__(*error)

    def _noting(self, name: str, original: Any) -> Any:
        def noting(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.waits.append(name)
            return original(tensor, *args, **kwargs)

        return noting

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in (
            torch.ops.aten._local_scalar_dense,
            torch.ops.aten.is_nonzero,
            torch.ops.aten.equal,
        ):
            self.waits.append(str(func))
        return func(*args, **(kwargs or {}))


class Logs(TinyModel):
    """Logs in every way, and watches what happens between one batch's beginning and the next's."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = NothingWaits()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = super().training_step(batch, batch_idx)
        self.log("both", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log_dict({"sum": loss, "number": 3.0}, on_epoch=True, on_step=False, reduce_fx="sum")
        return loss


class Watching(Callback):
    """Watches from the start of the first batch to the end of the last.

    All that is between is the step's.
    """

    def __init__(self, watch: NothingWaits) -> None:
        self.watch = watch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.__enter__()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.__exit__(None, None, None)


class Listens(Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        pass

    def on_train_batch_end(self, *args: Any) -> None:
        pass

    def on_before_optimizer_step(self, *args: Any) -> None:
        pass


FETCHES = (
    lambda x: x.item(),
    lambda x: x.tolist(),
    lambda x: x.cpu(),
    lambda x: x.numpy(),
    float,
    bool,
    lambda x: f"{x:.1f}",
)


def test_no_value_is_fetched_within_the_steps(tmp_path: Path) -> None:
    """Nor is any collective called: tests/parallel/test_ddp.py."""
    watch = NothingWaits()
    for number, fetch in enumerate(FETCHES):
        with watch:
            fetch(torch.tensor(1.0))
        assert watch.waits, f"the watch does not see number {number}"
        watch.waits.clear()
    callbacks = [Watching(watch), Listens(), Listens()]
    pl_trainer = trainer(
        tmp_path, callbacks=callbacks, logger=True, log_every_n_steps=1000, limit_val_batches=0
    )
    pl_trainer.fit(Logs(), DataLoader(RandomDataset(32, 160), batch_size=4))
    assert pl_trainer.global_step == 40
    assert watch.waits == []


def test_callbacks_that_override_nothing_are_not_called(tmp_path: Path) -> None:
    class Idle(Callback):
        pass

    module, found = TinyModel(), []

    class Looks(Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert trainer._run is not None
            found.append(
                {
                    name: len(functions)
                    for name, functions in trainer._run.hooks.items()
                    if functions
                }
            )

    trainer(tmp_path, callbacks=[*(Idle() for _ in range(20)), Looks()]).fit(module)
    assert found == [{"on_train_start": 1}]


# ---- nothing is left ----


def test_after_fit_nothing_of_the_run_is_alive(tmp_path: Path) -> None:
    seen: list[weakref.ref[Any]] = []

    class Notes(Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.extend(
                map(
                    weakref.ref,
                    (
                        trainer._run,
                        trainer.optimizers[0],
                        trainer.train_dataloader,
                        pl_module,
                        trainer,
                    ),
                )
            )

    module = TinyModel()
    pl_trainer = trainer(tmp_path, callbacks=[Notes()], logger=True, enable_checkpointing=True)
    pl_trainer.fit(module, DataLoader(RandomDataset(32, 16), batch_size=4))
    del module, pl_trainer
    gc.collect()
    assert [type(ref()).__name__ for ref in seen if ref() is not None] == []
    assert len(seen) == 5


# ---- when it ends ----


@pytest.mark.parametrize(
    ("arguments", "epochs", "steps"),
    [
        ({"max_epochs": 3}, 3, 12),
        ({"max_epochs": 0}, 0, 0),
        ({"max_epochs": 9, "max_steps": 5}, 2, 5),
        ({"max_epochs": -1, "max_steps": 4}, 1, 4),
        ({"max_epochs": 9, "max_steps": 0}, 0, 0),
        ({"max_epochs": 2, "limit_train_batches": 0.5}, 2, 4),
        ({"max_epochs": 2, "limit_train_batches": 3}, 2, 6),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 2, 4),
        ({"fast_dev_run": True}, 1, 1),
    ],
)
def test_it_ends_where_the_arguments_say(
    tmp_path: Path, arguments: dict[str, Any], epochs: int, steps: int
) -> None:
    pl_trainer = trainer(tmp_path, **arguments)
    result = pl_trainer.fit(BoringModel(), DataLoader(RandomDataset(32, 16), batch_size=4))
    assert (pl_trainer.current_epoch, pl_trainer.global_step) == (epochs, steps)
    assert (result.epochs, result.steps) == (epochs, steps)


def test_an_exception_says_where_it_was_raised(tmp_path: Path) -> None:
    class Breaks(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 2:
                raise ArithmeticError("no")
            loss: Tensor = super().training_step(batch, batch_idx)
            return loss

    with pytest.raises(ArithmeticError) as caught:
        trainer(tmp_path).fit(Breaks())
    assert caught.value.__notes__ == [
        "(raylit) rank 0 of 1, epoch 0, batch_idx 2, step 2, in train"
    ]
