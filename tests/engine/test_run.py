from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import raylit as pl
from raylit.core.job import Job
from raylit.engine.run import Run, check_dataloader_idx, restore_modes, submodule_modes
from raylit.errors import ConfigError, DataError
from raylit.parallel import World
from raylit.testing import BoringDataModule, BoringModel, RandomDataset, TinyModel
from tests.quiet import BARE


def run_of(
    module: pl.LightningModule,
    datamodule: Any = None,
    data: Any = None,
    fn: Any = "fit",
    **arguments: Any,
) -> Run:
    """A run that was made but not begun."""
    trainer = pl.Trainer(**{**BARE, "max_epochs": 1, **arguments})
    return Run(Job(fn, trainer, module, datamodule, data or {}), World(torch.device("cpu")))


# ---- data ----


class Bare(pl.LightningModule):
    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


def test_who_gives_the_data() -> None:
    loader = DataLoader(RandomDataset(32, 6))
    assert (
        run_of(TinyModel(), BoringDataModule(), {"train": loader}).load("train").iterables is loader
    ), "what was given comes first"
    data = BoringDataModule()
    data.setup("fit")
    assert len(run_of(TinyModel(), data).load("train")) == 64, "then the datamodule"
    assert len(run_of(TinyModel()).load("train")) == 4, "then the module"
    assert [run_of(Bare()).has_data(stage) for stage in ("train", "val", "test", "predict")] == [
        False
    ] * 4


def test_whoever_gives_none_is_named() -> None:
    class Forgets(BoringDataModule):
        def val_dataloader(self) -> None:
            DataLoader(RandomDataset(32, 6))

    with pytest.raises(DataError, match=r"Forgets\.val_dataloader\(\) returned None"):
        run_of(Bare(), Forgets()).load("val")


@pytest.mark.parametrize(
    ("module", "data", "limit", "expected"),
    [
        (TinyModel(), None, 1.0, True),
        (TinyModel(), None, 0, False),
        (Bare(), None, 1.0, False),
        (Bare(), range(3), 1.0, True),
        (pl.LightningModule(), range(3), 1.0, False),
    ],
)
def test_whether_a_fit_validates(module: Any, data: Any, limit: float, expected: bool) -> None:
    assert (
        run_of(module, data={"val": data} if data else {}, limit_val_batches=limit).validates
        is expected
    )


# ---- calls ----


@pytest.mark.parametrize(
    ("step", "takes"),
    [
        (lambda batch: None, False),
        (lambda batch, batch_idx: None, True),
        (lambda batch, i: None, True),
        (lambda batch, *, batch_idx=0: None, False),
        (lambda *args: None, True),
        (lambda batch, **more: None, False),
    ],
)
def test_whether_a_step_takes_the_number_of_the_batch(step: Any, takes: bool) -> None:
    module = TinyModel()
    module.training_step = step  # type: ignore[method-assign]
    run = run_of(module)
    run.resolve_calls()
    assert run.calls.takes_batch_idx["training_step"] is takes


def test_on_a_cpu_nothing_is_moved_unless_somebody_wants_it() -> None:
    class Doubles(BoringDataModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch * 2

    plain, doubling, double = (
        run_of(TinyModel()),
        run_of(TinyModel(), Doubles()),
        run_of(TinyModel(), precision=64),
    )
    for run in (plain, doubling, double):
        run.resolve_calls()
    assert plain.calls.transfer is None
    assert (
        doubling.calls.transfer is not None
        and doubling.calls.transfer(torch.ones(1), 0).item() == 2
    )
    assert (
        double.calls.transfer is not None
        and double.calls.transfer(torch.ones(1), 0).dtype == torch.float64
    )


def test_a_transfer_of_both_is_the_datamodules(monkeypatch: pytest.MonkeyPatch) -> None:

    class Data(BoringDataModule):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return "the datamodule's"

    class Net(TinyModel):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return "the module's"

    run = run_of(Net(), Data())
    with pytest.warns(UserWarning, match="overridden in both the module and the datamodule"):
        run.resolve_calls()
    assert run.calls.transfer is not None and run.calls.transfer(1, 0) == "the datamodule's"


def test_a_hook_that_fails_leaves_the_hook_before_it() -> None:
    class Fails(TinyModel):
        def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
            raise ZeroDivisionError

    module = Fails()
    run = run_of(module)
    run.metrics.hook = "training_step"
    with pytest.raises(ZeroDivisionError):
        run.call(module, "backward", None)
    assert run.metrics.hook == "training_step"


class WithIndex(BoringModel):
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None: ...  # type: ignore[override]


class WithDefault(BoringModel):
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None: ...  # type: ignore[override]


class Variadic(BoringModel):
    def test_step(self, *args: Any) -> None: ...


@pytest.mark.parametrize(
    ("module", "number", "message"),
    [
        (BoringModel(), 1, None),
        (BoringModel(), 2, "There are 2 loaders"),
        (WithIndex(), 1, "There is one loader, but test_step wants dataloader_idx"),
        (WithIndex(), 2, None),
        (WithDefault(), 1, None),
        (WithDefault(), 2, None),
        (Variadic(), 2, None),
    ],
)
def test_several_loaders_are_told_apart(module: Any, number: int, message: str | None) -> None:
    if message is None:
        check_dataloader_idx(module, "test_step", number)
    else:
        with pytest.raises(ConfigError, match=message):
            check_dataloader_idx(module, "test_step", number)


def test_modes_come_back_for_those_that_had_one() -> None:
    module = TinyModel()
    module.dropout.eval()
    modes = submodule_modes(module)
    module.eval()
    module.new = torch.nn.Dropout()  # type: ignore[assignment]
    restore_modes(module, modes)
    assert (
        module.training,
        module.layer.training,
        module.dropout.training,
        module.new.training,
    ) == (True, True, False, True)


# ---- what was logged ----


def test_the_values_of_a_step_are_one_row_of_the_history() -> None:
    run = run_of(TinyModel())
    run.progress.steps = 4
    run.remember({"val_loss": torch.tensor(1.0)})
    run.remember({"train_loss": 2.0})
    run.remember({})
    run.progress.steps = 8
    run.remember({"train_loss": 1.5})
    assert run.outcome.history.rows == [
        {"epoch": 0, "step": 4, "val_loss": 1.0, "train_loss": 2.0},
        {"epoch": 0, "step": 8, "train_loss": 1.5},
    ]


def test_a_logged_step_is_the_x(tmp_path: Path) -> None:
    logger = pl.CSVLogger(tmp_path)

    class Net(TinyModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("step", 100.0 + batch_idx)
            return super().training_step(batch, batch_idx)

    pl.Trainer(
        **{
            **BARE,
            "logger": logger,
            "max_epochs": 1,
            "limit_train_batches": 2,
            "limit_val_batches": 0,
            "log_every_n_steps": 1,
        }
    ).fit(Net())
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("step")
    assert [row.split(",")[column] for row in rows[1:]] == ["100", "101"]
