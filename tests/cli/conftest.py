"""A folder with a user's own module in it, and `raylit` run in that folder as a user runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deadlines import stretched

ROOT = Path(__file__).parents[2]

LAB = '''\
import time

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl


class Bare(pl.LightningModule):
    """Leaves configure_optimizers to the config."""

    def __init__(self, width: int = 4, delay_s: float = 0.0, encoder: nn.Module | None = None):
        super().__init__()
        self.save_hyperparameters()
        self.delay_s = delay_s
        self.net = nn.Sequential(
            nn.Linear(10, width), nn.ReLU(), encoder or nn.Identity(), nn.Linear(width, 1)
        )

    def forward(self, batch):
        return self.net(batch[0])

    def training_step(self, batch, batch_idx):
        time.sleep(self.delay_s)
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        pass


class Net(Bare):
    def __init__(self, lr: float = 0.05, **kwargs):
        super().__init__(**kwargs)
        self.lr = lr

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Activated(Net):
    def __init__(self, activation: type[nn.Module] = nn.ReLU, name: str = "1", **kwargs):
        super().__init__(**kwargs)
        self.activation = activation
        self.name = name


class Broken(Net):
    def __init__(self, at: str, **kwargs):
        super().__init__(**kwargs)
        self.at = at
        if at == "init":
            raise RuntimeError("no such head")

    def training_step(self, batch, batch_idx):
        if self.at == "step":
            return self.deeper(batch)
        self.log("two_values", torch.ones(2))

    def deeper(self, batch):
        return torch.ones(2, 3) @ batch[0]


class Diabetes(pl.LightningDataModule):
    def __init__(self, batch_size: int = 32):
        self.batch_size = batch_size

    def setup(self, stage):
        x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
        self.data = TensorDataset(x * 20, (y.unsqueeze(1) - 152) / 77)

    def train_dataloader(self):
        return DataLoader(self.data, self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.data, 221)

    test_dataloader = predict_dataloader = val_dataloader
'''

SETTINGS = (
    "MLFLOW_TRACKING_URI",
    "MLFLOW_RUN_ID",
    "RAY_ADDRESS",
    "RAYLIT_VERBOSE",
    "RAYLIT_PROGRESS",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
)


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


def environment() -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    return env | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
    }


def run_raylit(
    folder: Path, *args: str, timeout_s: float = 150, env: dict[str, str] | None = None
) -> Done:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "raylit", *args]
    done = subprocess.run(
        command,
        cwd=folder,
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=stretched(timeout_s),
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: it holds `lab.py`, and nothing of the user's settings is known there."""
    (tmp_path / "lab.py").write_text(LAB)
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the command sets
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("lab", None)
    yield tmp_path
    sys.modules.pop("lab", None)


@pytest.fixture
def main(lab: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`raylit.cli.main` in this process, in the folder `lab`."""
    from raylit.cli import main

    def call(*args: str) -> Done:
        capfd.readouterr()
        code = main(list(args))
        return Done(code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs and examples of the repository."""
    folder = tmp_path_factory.mktemp("digits")
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def trained(digits: Path) -> tuple[Path, Done]:
    """The folder after `raylit fit --config configs/digits.yaml`, and what that said."""
    return digits, run_raylit(digits, "fit", "--config", "configs/digits.yaml")
