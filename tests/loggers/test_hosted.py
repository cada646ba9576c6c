"""Loggers of hosted services, on their own packages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.errors import ConfigError, MissingPackageError
from raylit.testing import TinyModel


@pytest.mark.parametrize(
    ("name", "package"),
    [("WandbLogger", "wandb"), ("CometLogger", "comet_ml"), ("NeptuneLogger", "neptune")],
)
def test_a_missing_package_is_named_with_its_installation(name: str, package: str) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(MissingPackageError, match=rf"{name} needs .* pip install {package}"):
        getattr(pl.loggers, name)()


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit into one run, whose files hold values and hyperparameters."""
    wandb: Any = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = pl.loggers.WandbLogger(project="p", save_dir=tmp_path, offline=True, prefix="x")
    with pytest.raises(ConfigError, match="cannot be sent offline"):
        pl.loggers.WandbLogger(offline=True, log_model="all")

    class Net(TinyModel):
        def __init__(self, width: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters()

    trainer = pl.Trainer(
        max_epochs=1,
        logger=logger,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Net(width=5))
    run = logger.experiment
    assert (logger.name, logger.version, logger.save_dir) == ("p", run.id, str(tmp_path))
    assert run.config["width"] == 5
    assert run.summary["x-train_loss"] is not None
    assert f"/{run.id}/checkpoints" in str(trainer.checkpoint_callback.dirpath)  # type: ignore[union-attr]
    wandb.finish()
    assert json.dumps([str(one) for one in tmp_path.rglob(f"run-{run.id}.wandb")]) != "[]"
