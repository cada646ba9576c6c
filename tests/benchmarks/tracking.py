"""What recording in MLflow costs the training thread, and how fast it gets to the store.

    python -m tests.benchmarks.tracking [--calls 5000] [--waiting 60000] [--http] [--only monitor]

The first table is the time of a call of `log_metrics` in a loop that computes for 1 ms between two
calls, with 1 value and with 20: raylit's logger while its sender is at work and while the store is
away, Lightning's logger, mlflow's client, its asynchronous logging, and `log_batch`. The second is
how many values a second reach an SQLite store, and with --http a server, and how long closing takes
with many waiting. The third is the part of a step's time that `MLFlowLogger(monitor=...)` takes, in
CPU time of the training thread, with values to the loggers every 50 steps: of a small model, where
it is the most, and of one of a million parameters. Each is measured alone, one after the other, in
one process and run.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow
import torch
from mlflow.entities import Metric
from torch import nn

from raylit.engine.monitor import Monitor
from raylit.loggers.mlflow import sender
from raylit.loggers.mlflow.logger import MLFlowLogger
from tests.benchmarks import step as loops
from tests.benchmarks.step import Batches, Mlp
from tests.loggers.mlflow_store import free_port, start_server, wait_for_server

Log = Callable[[dict[str, float], int], object]


def timed(log: Log, num_values: int, num_calls: int) -> tuple[float, float]:
    """Return the mean and the 99th percentile of a call, in microseconds."""
    names = [f"group/value_{number}" for number in range(num_values)]
    times: list[float] = []
    for step in range(num_calls):
        metrics = {name: step / (place + 1) for place, name in enumerate(names)}
        until = time.perf_counter() + 0.001
        while time.perf_counter() < until:
            pass
        start = time.perf_counter()
        log(metrics, step)
        times.append((time.perf_counter() - start) * 1e6)
    times.sort()
    return statistics.fmean(times), times[int(len(times) * 0.99)]


def show(name: str, log: Log, num_calls: int) -> None:
    cells = [f"{name:<44}"]
    for num_values in (1, 20):
        mean, high = timed(log, num_values, num_calls)
        cells.append(f"{mean:>10.1f}{high:>10.1f}")
    print("  ".join(cells), flush=True)


def raylit(uri: str, folder: Path) -> MLFlowLogger:
    logger = MLFlowLogger("benchmark", tracking_uri=uri, save_dir=folder)
    logger.open(default_root_dir=str(folder), tags={})
    return logger


def cost_per_call(uri: str, folder: Path, num_calls: int) -> None:
    print(f"{'microseconds a call':<44}  {'1 value':>10}{'p99':>10}  {'20 values':>10}{'p99':>10}")
    logger = raylit(uri, folder)
    logger.log_metrics({"first": 0.0}, 0)
    assert logger._live.sender is not None
    logger._live.sender.start()
    time.sleep(8)  # mlflow is imported there
    show("raylit, sender at work", logger.log_metrics, num_calls)
    logger.close("success")

    database = Path(uri.removeprefix("sqlite:///"))
    away = database.with_suffix(".away")
    logger = raylit(uri, folder)
    database.rename(away)
    logger.log_metrics({"first": 0.0}, 0)
    assert logger._live.sender is not None
    logger._live.sender.start()
    time.sleep(4)
    show("raylit, store away", logger.log_metrics, num_calls)
    away.rename(database)
    logger.close("success")

    few = max(num_calls // 50, 20)
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment(f"calls {time.time()}")
    run_id = client.create_run(experiment).info.run_id

    def batch(metrics: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        client.log_batch(
            run_id, [Metric(name, value, now, step) for name, value in metrics.items()]
        )

    def one_by_one(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            client.log_metric(run_id, name, value, step=step)

    def later(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            client.log_metric(run_id, name, value, step=step, synchronous=False)

    show("mlflow client, log_batch", batch, few)
    show("mlflow client, synchronous", one_by_one, few)
    show("mlflow client, asynchronous", later, few)
    mlflow.flush_async_logging()
    from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger

    theirs: Any = LightningMLFlowLogger("lightning", tracking_uri=uri)
    _ = theirs.run_id
    show("Lightning's MLFlowLogger", theirs.log_metrics, few)


def throughput(name: str, uri: str, folder: Path, num_waiting: int) -> None:
    """Log many values at once, and see how long `finalize` takes to bring them to the store."""
    logger = raylit(uri, folder)
    rows = num_waiting // 20
    for step in range(rows):
        logger.log_metrics({f"group/value_{number}": float(step) for number in range(20)}, step)
    start = time.perf_counter()
    logger.finalize("success")
    took = time.perf_counter() - start
    logger.close("success")
    ours = f"{rows * 20 / took:>12.0f}{took:>12.1f}"

    client = mlflow.MlflowClient(uri)
    run_id = client.create_run(client.create_experiment(f"batch {time.time()}")).info.run_id
    start = time.perf_counter()
    for first in range(0, min(rows, 500), 50):
        client.log_batch(
            run_id,
            [
                Metric(f"group/value_{number}", float(step), 1000 + step, step)
                for step in range(first, first + 50)
                for number in range(20)
            ],
        )
    took = time.perf_counter() - start
    print(f"{name:<44}  {ours}{min(rows, 500) * 20 / took:>16.0f}", flush=True)


class ByThread(Batches):
    """Batches that note the CPU time of the training thread."""

    def now(self) -> float:
        """The time that this thread has computed."""
        return time.thread_time()


class Million(Mlp):
    """An MLP of a million parameters."""

    @staticmethod
    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(10, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 1)
        )


class Timed(Monitor):
    """Notes the CPU time that it takes."""

    seconds = 0.0

    def log(self) -> None:
        """Measure, and note how long that took."""
        start = time.thread_time()
        super().log()
        Timed.seconds += time.thread_time() - start


def cost_of_monitor(folder: Path, num_steps: int, num_rounds: int) -> None:
    """Fit, and show which part of the time of a step goes into what raylit measures."""
    import raylit as pl

    for work, steps in ((Mlp, num_steps), (Million, num_steps // 10)):
        for name, monitor in {"perf": ["perf"], "optim": ["optim"], "all": True}.items():
            shares = []
            for _ in range(num_rounds):
                batches = ByThread(steps, work)
                logger = pl.MLFlowLogger("monitor", save_dir=folder, monitor=monitor)
                trainer = pl.Trainer(
                    max_epochs=1,
                    accelerator="cpu",
                    logger=logger,
                    default_root_dir=folder,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                )
                Timed.seconds = 0.0
                with mock.patch("raylit.engine.run.Monitor", Timed):
                    trainer.fit(loops.module(pl, work, True), batches)
                shares.append(Timed.seconds / steps / batches.seconds_per_step)
            per_step = batches.seconds_per_step * 1e6
            cost = f"{per_step:>10.1f}{statistics.median(shares) * 100:>9.2f}%"
            print(f"{work.__name__ + ': ' + name:<44}  {cost}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000)
    parser.add_argument("--waiting", type=int, default=60_000)
    parser.add_argument("--steps", type=int, default=10_000, help="of a fit of the third table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", choices=("", "calls", "monitor"))
    parser.add_argument("--http", action="store_true", help="also a server on this machine")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    sender.GIVE_UP_S = 600
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        if args.only != "calls":
            print(f"{'what is measured, of a step':<44}  {'us a step':>10}{'share':>10}")
            cost_of_monitor(folder / "fits", args.steps, args.rounds)
            print()
        if args.only == "monitor":
            return
        cost_per_call(uri, folder / "files", args.calls)
        print(f"\n{'':<44}  {'values/s':>12}{'close, s':>12}{'log_batch, 1/s':>16}")
        throughput("SQLite", uri, folder / "files", args.waiting)
        if args.http:
            port = free_port()
            server = start_server(folder / "mlflow.db", port)
            try:
                wait_for_server(port)
                uri = f"http://127.0.0.1:{port}"
                throughput("HTTP, SQLite behind it", uri, folder / "files", args.waiting)
            finally:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


if __name__ == "__main__":
    main()
