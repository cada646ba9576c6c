"""What raylit costs beside its steps.

An epoch's turn, a fit, the import, memory, and what grows with the number of callbacks and logs.

    python -m tests.benchmarks.costs [--rounds 5]

Everything is measured in turns with what it is compared to, and the medians are shown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from tests.benchmarks.step import Batch, Batches, net, quiet

NUM_EPOCHS, NUM_STEPS, NUM_CALLBACKS, NUM_KEYS = 200, 600, 20, 50

MEMORY = """
import resource, sys, torch
from torch import nn
from torch.utils.data import DataLoader
import raylit as pl

class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*[nn.Linear(2048, 2048) for _ in range(8)])

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())

torch.manual_seed(0)
model, batches = Net(), DataLoader(torch.randn(6, 256, 2048), batch_size=None)
if sys.argv[1] == "raylit":
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False,
                 enable_model_summary=False)
    pl.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(model, batches)
else:
    optimizer = model.configure_optimizers()
    for index, batch in enumerate(batches):
        loss = model.training_step(batch, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


class Net(pl.LightningModule):
    """The small model, which logs under as many names as it is told."""

    def __init__(self, num_keys: int = 0) -> None:
        super().__init__()
        self.net = net()
        self.names = [f"loss_{number}" for number in range(num_keys)]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss."""
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        for name in self.names:
            self.log(name, loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Idle(pl.Callback):
    """A callback that overrides nothing."""


def fit(data: Any, num_keys: int = 0, **arguments: Any) -> float:
    """Return the seconds that a fit takes."""
    bare = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = pl.Trainer(
            **{
                "max_epochs": 1,
                "accelerator": "cpu",
                "default_root_dir": Path(folder),
                **bare,
                **arguments,
            }
        )
        model = Net(num_keys)
        start = time.perf_counter()
        trainer.fit(model, data)
        return time.perf_counter() - start


def epochs_turn() -> float:
    """Return the seconds of an epoch of one batch, less those of a batch in a long epoch."""
    return fit(Batches(1), max_epochs=NUM_EPOCHS) / NUM_EPOCHS - step()


def loaders_epoch() -> float:
    """Return the seconds of an epoch of one batch that a DataLoader gives, in random order."""
    inputs, targets = next(iter(Batches(1)))
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=len(inputs), shuffle=True)
    return fit(loader, max_epochs=NUM_EPOCHS) / NUM_EPOCHS


def step(num_keys: int = 0, num_callbacks: int = 0) -> float:
    """Return the seconds of a step."""
    batches = Batches(NUM_STEPS)
    fit(batches, num_keys, callbacks=[Idle() for _ in range(num_callbacks)])
    return batches.seconds_per_step


def python(*arguments: str) -> tuple[float, str]:
    """Return the seconds that a Python process takes, and what it printed.

    It finds modules compiled, as after the first import.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, env=env
    )
    return time.perf_counter() - start, done.stdout


def measure(num_rounds: int) -> dict[str, str]:
    """Return what was measured, in words, with what it is."""
    torch.set_num_threads(1)
    measures: dict[str, Callable[[], float]] = {
        "turn": epochs_turn,
        "loader": loaders_epoch,
        "empty": lambda: fit(Batches(0)),
        "step": step,
        "idle": lambda: step(num_callbacks=NUM_CALLBACKS),
        "one": lambda: step(num_keys=1),
        "many": lambda: step(num_keys=NUM_KEYS),
        "torch": lambda: python("-c", "import torch")[0],
        "raylit": lambda: python("-c", "import raylit; raylit.Trainer")[0],
        "kib by hand": lambda: float(python("-c", MEMORY, "by hand")[1]),
        "kib": lambda: float(python("-c", MEMORY, "raylit")[1]),
    }
    found: dict[str, list[float]] = {name: [] for name in measures}
    measures["raylit"]()
    fit(Batches(1))  # the first fit of a process imports what PyTorch imports late, for a second
    for _ in range(num_rounds):
        for name, function in measures.items():
            found[name].append(function())
    median = {name: statistics.median(values) for name, values in found.items()}
    keys = (median["many"] - median["step"]) / (median["one"] - median["step"])
    return {
        "turn of an epoch, without validation": f"{median['turn'] * 1e3:.3f} ms",
        "epoch of one batch of a shuffling DataLoader": f"{median['loader'] * 1e3:.3f} ms",
        "fit on an empty loader": f"{median['empty'] * 1e3:.2f} ms",
        f"step with {NUM_CALLBACKS} callbacks that override nothing": (
            f"{median['idle'] / median['step']:.3f} x a step without"
        ),
        f"logging {NUM_KEYS} keys": f"{keys:.1f} x one key",
        "import raylit": f"{median['raylit'] / median['torch']:.3f} x import torch",
        "peak memory of a fit": (
            f"{median['kib'] / median['kib by hand']:.3f} x the hand-written loop's"
        ),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    for name, value in measure(parser.parse_args().rounds).items():
        print(f"{name:50} {value}")
