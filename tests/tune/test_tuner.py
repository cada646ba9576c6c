"""The Tuner's two searches in this process; sweeps have a file of their own."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import raylit as pl
from raylit.errors import ConfigError, DataError
from raylit.loggers import CSVLogger
from raylit.loggers.dummy import DummyLogger
from raylit.testing import RandomDataset, TinyModel
from raylit.tune.spec import SweepSettings, SweepSpec
from tests.deadlines import stretched
from tests.quiet import QUIET


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Tunable(TinyModel):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.lr = lr

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.logger.experiment.add_scalar("x", 1.0, global_step=batch_idx)  # of any library
        self.logger.log_image("x", [])
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Watch(pl.Callback):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.file: str | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.calls.append("setup")
        self.file = "open"

    def on_train_batch_end(self, *args: Any) -> None:
        self.calls.append("batch")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.calls.append("teardown")


def test_nothing_is_changed_but_the_attribute(tmp_path: Path) -> None:
    watch, logger, generator = Watch(), CSVLogger(tmp_path), torch.Generator().manual_seed(3)
    trainer = pl.Trainer(
        max_epochs=4, logger=logger, callbacks=[watch], default_root_dir=tmp_path, **QUIET
    )
    callbacks = list(trainer.callbacks)
    model = Tunable()
    model.layer.weight.grad = torch.ones_like(model.layer.weight)
    model.dropout.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state(), generator.get_state()
    loader = DataLoader(RandomDataset(32, 64), batch_size=4, shuffle=True, generator=generator)
    found = pl.Tuner(trainer).lr_find(model, loader, num_training=40)
    assert found is not None
    assert len(found.results["lr"]) == 40
    assert model.lr == found.suggestion() != 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.dropout.training) == (True, False)
    assert all(
        torch.equal(now, then)
        for now, then in zip((torch.get_rng_state(), generator.get_state()), random, strict=True)
    )
    assert trainer.callbacks == callbacks
    assert (watch.calls, watch.file) == (["setup", "teardown"], None)
    assert trainer.loggers == [logger]
    assert (
        trainer.global_step,
        trainer.current_epoch,
        trainer.max_steps,
        trainer.limit_val_batches,
    ) == (0, 0, -1, 1.0)
    assert list(tmp_path.rglob("*")) == []


def test_the_searches_load_no_ray(tmp_path: Path) -> None:
    script = (
        "import sys, raylit as pl\nfrom raylit.testing import TinyModel\ntuner ="
        " pl.Tuner(pl.Trainer(max_epochs=1, logger=False, accelerator='cpu',"
        " enable_progress_bar=False))\ntuner.lr_find(TinyModel(), num_training=3,"
        " update_attr=False)\nassert tuner.scale_batch_size(TinyModel(), max_trials=2) =="
        " 4\nprint('ray' in sys.modules, 'mlflow' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=stretched(200),
        check=False,
    )
    assert done.stdout.split() == ["False", "False"], done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_searched_is_told_before_it_begins(tmp_path: Path) -> None:
    def tuner(**settings: Any) -> pl.Tuner:
        return pl.Tuner(
            pl.Trainer(**{"max_epochs": 1, "default_root_dir": tmp_path, **QUIET, **settings})
        )

    with pytest.raises(ConfigError, match=r"num_workers=2.*Trainer\(num_workers=0\)"):
        tuner(num_workers=2).scale_batch_size(Tunable())
    with pytest.raises(DataError, match="train data is an iterator"):
        tuner().lr_find(Tunable(), iter([torch.zeros(1, 32)]))
    with pytest.raises(ConfigError, match="Did you mean 'fit'"):
        tuner().scale_batch_size(Tunable(), method="fitt")
    with pytest.raises(ConfigError, match=r"loaders that were given to Trainer\.test directly"):
        tuner().scale_batch_size(
            Tunable(), dataloaders=DataLoader(RandomDataset(32, 8)), method="test"
        )
    with pytest.raises(TypeError, match="LightningModule"):
        tuner().lr_find(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_a_dummy_takes_any_call() -> None:
    logger = DummyLogger()
    logger.log_metrics({"a": 1.0})
    logger.log_hyperparams({"a": 1}, {"hp": 2})
    logger.experiment.add_image("x", [0], 3)
    logger.experiment["a"].append(1)
    logger[0].watch(None)
    assert (logger.name, logger.version, logger.save_dir) == ("", "", None)


@pytest.mark.ray
@pytest.mark.slow
def test_workers_find_the_learning_rate_for_the_driver(tmp_path: Path) -> None:
    trainer = pl.Trainer(max_epochs=10, num_workers=2, default_root_dir=tmp_path, **QUIET)
    model = Tunable(lr=0.5)
    before = model.layer.weight.detach().clone()
    found = pl.Tuner(trainer).lr_find(model, num_training=16)
    assert found is not None
    assert len(found.results["lr"]) == 16
    assert model.lr == found.suggestion() != 0.5
    assert torch.equal(model.layer.weight, before)


def test_the_typed_keywords_are_the_settings() -> None:
    settings = {one.name for one in dataclasses.fields(SweepSpec) if one.init}
    assert set(SweepSettings.__annotations__) == settings
