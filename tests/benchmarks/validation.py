"""What validation costs a fit that waits for it, and one with `async_validation=True`.

    python -m tests.benchmarks.validation [--steps 300] [--rounds 3] [--io]

One process trains with one thread, and validates every fifth of the way for about as long as it
trains in between. With `--io` validation waits for something, such as data from afar, rather than
compute: then the tasks take no core from training, however few there are. The table has the median
seconds of training, from its first batch to the end of its last, and those of the whole fit, each
as a ratio to the fit without validation.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

import raylit as pl
from raylit import ValidationConfig
from raylit.launch.on_ray.cluster import connect
from tests.benchmarks.step import quiet

WIDTH, BATCH = 512, 64


class Net(pl.LightningModule):
    """A few wide layers."""

    def __init__(self, io_s: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(8)))
        self.io_s = io_s

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.io_s:
            time.sleep(self.io_s)
        self.log("val_loss", self.net(batch).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Clock(pl.Callback):
    """Seconds of training."""

    def on_train_start(self, *args: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self.ended = time.perf_counter()


def fit(kind: str, steps: int, io: bool) -> tuple[float, float]:
    """Seconds of training and of the whole fit."""
    every, clock = max(1, steps // 5), Clock()
    num_val = every if io else 3 * every  # a batch of training costs three of validation
    train, val = (
        DataLoader(torch.randn(BATCH * number, WIDTH), BATCH) for number in (steps, num_val)
    )  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder, quiet():
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            val_check_interval=every,
            num_sanity_val_steps=0,
            callbacks=clock,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            limit_val_batches=0 if kind == "none" else 1.0,
            async_validation=ValidationConfig(max_pending=9) if kind == "async" else False,
        )
        began = time.perf_counter()
        trainer.fit(Net(0.02 if io else 0.0), train, val)
        return clock.ended - clock.began, time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--io", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with quiet():
        connect()
    kinds = {"no validation": "none", "waited for": "sync", "not waited for": "async"}
    fit("async", 5, args.io)  # starts a process for the tasks
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in kinds}
    for _ in range(args.rounds):
        for name, kind in kinds.items():
            times[name].append(fit(kind, args.steps, args.io))
    print("validation        training s   ratio   fit s   ratio")
    first = [statistics.median(one[index] for one in times["no validation"]) for index in (0, 1)]
    for name, measured in times.items():
        training, whole = (statistics.median(one[index] for one in measured) for index in (0, 1))
        print(
            f"{name:<16}  {training:10.2f}  {training / first[0]:6.2f}  {whole:6.2f} "
            f" {whole / first[1]:6.2f}"
        )


if __name__ == "__main__":
    main()
