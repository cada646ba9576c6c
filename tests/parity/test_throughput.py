"""Rates, FLOPs, and what ThroughputMonitor logs of them.

A clock that ticks once for each look makes them the same in every run.
"""

from __future__ import annotations

import importlib
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.harness import errors, loader, model_class, parity, rows, seen, trainer


def place(pl: Any) -> Any:
    """The module with Throughput."""
    return importlib.import_module(
        "raylit.utilities.throughput"
        if pl.__name__ == "raylit"
        else "lightning.fabric.utilities.throughput"
    )


@parity
@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize(
    "settings",
    [{}, {"window_size": 3}, {"window_size": 2, "separator": "-", "available_flops": 1e3}],
    ids=str,
)
def test_rates(pl: Any, tmp_path: Path, settings: dict[str, Any], world_size: int) -> Any:
    throughput = place(pl).Throughput(world_size=world_size, **settings)
    found = []
    for number in range(1, 6):
        with_all = {"lengths": number * 11, "flops": 100 + number} if number > 0 else {}
        throughput.update(time=number * 1.7, batches=number, samples=number * 3, **with_all)
        found.append(throughput.compute())
    throughput.reset()
    throughput.update(time=1, batches=1, samples=1)
    return [*found, throughput.compute()]


@errors
@pytest.mark.parametrize(
    "second",
    [
        {"time": 1.0, "batches": 2, "samples": 8},
        {"time": 2.0, "batches": 1, "samples": 8},
        {"time": 2.0, "batches": 2, "samples": 4},
        {"time": 2.0, "batches": 9, "samples": 8},
        {"time": 2.0, "batches": 2, "samples": 8, "lengths": 7},
        {"time": 2.0, "batches": 2, "samples": 8, "lengths": 9},
    ],
    ids=str,
)
def test_updates_that_cannot_be(pl: Any, tmp_path: Path, second: dict[str, Any]) -> Any:
    throughput = place(pl).Throughput()
    throughput.update(time=1.0, batches=1, samples=4)
    throughput.update(**second)


@parity
def test_flops(pl: Any, tmp_path: Path) -> Any:
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))
        x = torch.randn(3, 8)
    measure = place(pl).measure_flops
    return [measure(model, lambda: model(x)), measure(model, lambda: model(x), lambda y: y.sum())]


@parity
@pytest.mark.parametrize("flops", [None, 1000])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 2},
        {"limit_val_batches": 0},
        {"log_every_n_steps": 0},
    ],
    ids=str,
)
def test_what_is_logged(
    pl: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    flops: int | None,
) -> Any:
    class Model(model_class(pl)):  # type: ignore[misc]
        if flops:
            flops_per_batch = flops

    callback = pl.callbacks.ThroughputMonitor(
        len, length_fn=lambda batch: batch.numel(), window_size=3
    )
    one = trainer(
        pl,
        tmp_path,
        **{
            "callbacks": [callback],
            "logger": True,
            "log_every_n_steps": 2,
            "max_epochs": 2,
            **settings,
        },
    )
    model = Model()
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)) * 0.5)
    one.fit(model, loader(5, short=1), loader(4, seed=1))
    for _ in range(2):
        one.validate(model, loader(4), verbose=False)
        one.test(model, loader(4), verbose=False)
    one.predict(model, loader(4))
    return [
        rows(one),
        {key: value for key, value in seen(one).items() if key in ("weights", "callback_metrics")},
    ]
