"""How long training waited for data is measured, said, shown and logged, with what helps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import raylit as pl
from raylit.engine import data_wait
from raylit.engine.data_wait import DataWait, remedy


class Slow:
    """Batches that take their time."""

    def __init__(self, num: int, wait_s: float) -> None:
        self.num = num
        self.wait_s = wait_s

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Any:
        for _ in range(self.num):
            time.sleep(self.wait_s)
            yield torch.ones(2, 3)


class Net(pl.LightningModule):
    def __init__(self, step_s: float = 0.0, val_s: float = 0.0) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 1)
        self.step_s = step_s
        self.val_s = val_s

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(self.step_s)
        return self.net(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(self.val_s)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Shown(pl.callbacks.ProgressBar):
    """Keeps what stands beside the bar."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.last = self.get_metrics(trainer, pl_module)


def fit(folder: Path, loader: Any, net: Net, **options: Any) -> tuple[pl.Result, Shown]:
    bar = Shown()
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder,
                         enable_model_summary=False, enable_checkpointing=False, callbacks=[bar],
                         num_sanity_val_steps=0, **options)  # fmt: skip
    return trainer.fit(net, loader, Slow(2, 0.0)), bar


@pytest.fixture(autouse=True)
def short_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits of seconds are long enough here."""
    monkeypatch.setattr(data_wait, "LEAST_S", 1.0)


def test_a_slow_loader_is_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logger = pl.loggers.CSVLogger(str(tmp_path))
    result, bar = fit(tmp_path, Slow(4, 0.3), Net(0.1, val_s=1.0), logger=logger)
    # four times 0.3 s of waiting and 0.1 s of computing; two validation batches of 1 s do not count
    assert 0.5 < result.data_wait <= 0.8
    assert f"Training waited for data {result.data_wait:.0%} of its time" in capfd.readouterr().err
    assert bar.last["data_wait"] == pytest.approx(result.data_wait, abs=0.05)
    assert "data_wait" in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_a_fast_loader_is_not_spoken_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    result, bar = fit(tmp_path, Slow(4, 0.0), Net(0.05), logger=False)
    assert result.data_wait == 0.0 and "data_wait" not in bar.last
    assert "waited for data" not in capfd.readouterr().err


def test_the_share_is_of_training_alone() -> None:
    wait = DataWait()
    wait.begin()
    wait.waited_s = 2.0
    time.sleep(0.02)
    wait.end()
    before = wait.share
    time.sleep(0.02)
    assert wait.share == before


def test_the_remedy_is_that_of_the_loader(tmp_path: Path) -> None:
    assert "DataLoader(num_workers=2)" in remedy(DataLoader(torch.ones(3)))  # type: ignore[arg-type]
    assert "DataLoader(num_workers=4)" in remedy(DataLoader(torch.ones(3), num_workers=2))  # type: ignore[arg-type]
    assert "read ahead in the Slow" in remedy(Slow(1, 0)).replace("Read", "read")
    pq.write_table(pa.table({"x": np.zeros(9)}), tmp_path / "x.parquet")
    streamed = pl.ArrowDataset(tmp_path / "x.parquet", mode="stream")
    assert "ArrowDataset(mode='memory')" in remedy(streamed.loader(2))
    assert "dataset.loader(num_workers=2)" in remedy(pl.ArrowDataset(pa.table({"x": [1]})).loader())
