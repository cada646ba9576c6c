"""Objects of Lightning beside raylit's: each is told in the words that modules are told in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import raylit as pl
from raylit.cli import LightningCLI
from raylit.testing import BoringDataModule, BoringModel
from tests.lazy import LazyModule

lightning = LazyModule("lightning.pytorch")
boring_classes = LazyModule("lightning.pytorch.demos.boring_classes")

QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
FLAGS = ["fit", "--trainer.fast_dev_run=1"]


def fit(**arguments: Any) -> None:
    pl.Trainer(**QUIET).fit(BoringModel(), **arguments)


def fit_with_a_late_callback() -> None:
    trainer = pl.Trainer(**QUIET)
    trainer.callbacks.append(lightning.callbacks.EarlyStopping("x"))  # type: ignore[arg-type]
    trainer.fit(BoringModel())


class ReturnsOne(BoringModel):
    def configure_callbacks(self) -> Any:
        return lightning.callbacks.LearningRateMonitor()


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda: pl.Trainer(**QUIET).fit(BoringModel), "BoringModel"),  # type: ignore[arg-type]
        (lambda: fit(datamodule=BoringDataModule), "BoringDataModule"),
        (
            lambda: pl.Trainer(callbacks=[pl.callbacks.Timer], **QUIET),  # type: ignore[list-item]
            "Timer",
        ),
    ],
)
def test_a_class_in_the_place_of_an_object_is_told(use: Callable[[], object], name: str) -> None:
    text = rf"the class {name}: give an object of it, such as {name}\(\)\.$"
    with pytest.raises((ValueError, TypeError), match=text):
        use()


@pytest.mark.parametrize(
    "use",
    [
        lambda: pl.Trainer(**QUIET).fit(ReturnsOne()),
        lambda: pl.Trainer(**QUIET).fit(boring_classes.BoringModel()),
        lambda: fit(datamodule=boring_classes.BoringDataModule()),
        lambda: fit(train_dataloaders=boring_classes.BoringDataModule()),
        lambda: pl.Trainer(callbacks=[lightning.callbacks.EarlyStopping("x")], **QUIET),
        fit_with_a_late_callback,
        lambda: lightning.tuner.Tuner(pl.Trainer(**QUIET)).lr_find(BoringModel()),
        lambda: pl.Trainer(logger=lightning.loggers.CSVLogger("x")),
        lambda: pl.Trainer(strategy=lightning.strategies.DDPStrategy(), **QUIET),
        lambda: pl.Trainer(profiler=lightning.profilers.SimpleProfiler(), **QUIET),
        lambda: pl.Trainer(plugins=[lightning.plugins.TorchSyncBatchNorm()], **QUIET),
        lambda: LightningCLI(boring_classes.BoringModel, BoringDataModule, args=FLAGS),
        lambda: LightningCLI(BoringModel, boring_classes.BoringDataModule, args=FLAGS),
        lambda: LightningCLI(BoringModel, trainer_class=lightning.Trainer, args=FLAGS),
    ],
)
def test_what_is_of_lightning_is_told(use: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError), match="one of Lightning: write `import raylit as"):
        use()


def test_in_a_config_too(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*FLAGS, "--trainer.callbacks=tests.as_lightning.half_moved.Half"]
    with pytest.raises(SystemExit):
        LightningCLI(BoringModel, BoringDataModule, args=flags)
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert "tests.as_lightning.half_moved.Half is refused. It is one of Lightning:" in last
    assert "write `import raylit" in last
