from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import raylit as pl
from raylit.testing import TinyModel


class Scheduled(TinyModel):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Keeps(pl.loggers.CSVLogger):
    settings: Any = None

    def log_settings(self, settings: Any) -> None:
        type(self).settings = settings


def test_a_logger_is_told_how_the_fit_is_set_up(tmp_path: Path) -> None:
    pl.seed_everything(7, verbose=False)
    pl.Trainer(
        max_epochs=1,
        gradient_clip_val=0.5,
        log_every_n_steps=1,
        accelerator="cpu",
        callbacks=[pl.callbacks.EarlyStopping("val_loss")],
        logger=Keeps(tmp_path),
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(Scheduled())
    found = Keeps.settings
    strategy = found["trainer"].pop("strategy")
    assert strategy
    assert found["trainer"] == {
        "max_epochs": 1,
        "gradient_clip_val": 0.5,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "callbacks": ["EarlyStopping"],
        "precision": "32-true",
        "world_size": 1,
        "seed": "7",
    }
    optimizer = found["optimizer"]
    assert (optimizer["name"], optimizer["lr"], optimizer["weight_decay"]) == ("AdamW", 0.02, 0.1)
    assert "fused" not in optimizer
    assert found["lr_scheduler"] == {
        "name": "StepLR",
        "step_size": 3,
        "gamma": 0.5,
        "interval": "step",
    }
