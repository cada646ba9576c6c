"""GradientAccumulationScheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parity.harness import (
    errors,
    loader,
    model_class,
    parity,
    seen,
    stream,
    traced_objects,
    trainer,
)


@parity
@pytest.mark.parametrize("scheduling", [{0: 2}, {1: 3}, {0: 3, 2: 1}, {1: 9}])
@pytest.mark.parametrize("batches", [4, 5])
def test_weights_and_metrics(
    pl: Any, tmp_path: Path, scheduling: dict[int, int], batches: int
) -> Any:
    scheduler = pl.callbacks.GradientAccumulationScheduler(dict(scheduling))
    one = trainer(
        pl, tmp_path, callbacks=[scheduler], max_epochs=4, logger=True, log_every_n_steps=1
    )
    one.fit(model_class(pl)(), loader(batches), loader(2))
    return {**seen(one), "accumulates": one.accumulate_grad_batches}


@parity
def test_data_without_a_length(pl: Any, tmp_path: Path) -> Any:
    one = trainer(
        pl,
        tmp_path,
        callbacks=[pl.callbacks.GradientAccumulationScheduler({0: 2, 1: 3})],
        max_epochs=3,
    )
    one.fit(model_class(pl)(), stream(5), loader(2))
    return seen(one)


@parity
def test_hooks(pl: Any, tmp_path: Path) -> Any:
    trace: list[Any] = []
    model, data, watch = traced_objects(pl, trace, train=loader(5), val=loader(1))
    scheduler = pl.callbacks.GradientAccumulationScheduler({1: 2})
    trainer(pl, tmp_path, callbacks=[scheduler, watch], max_epochs=3).fit(model, datamodule=data)
    return trace


@errors
def test_trainer_accumulates_too(pl: Any, tmp_path: Path) -> None:
    scheduler = pl.callbacks.GradientAccumulationScheduler({1: 2})
    trainer(pl, tmp_path, callbacks=[scheduler], accumulate_grad_batches=2).fit(
        model_class(pl)(), loader(2)
    )


@errors
def test_manual_optimization(pl: Any, tmp_path: Path) -> None:
    model = model_class(pl)()
    model.automatic_optimization = False
    trainer(pl, tmp_path, callbacks=[pl.callbacks.GradientAccumulationScheduler({1: 2})]).fit(
        model, loader(2)
    )


@errors
@pytest.mark.parametrize("scheduling", [{}, {-1: 2}, {0: 0}, {0.5: 2}, {1: 1.5}], ids=str)
def test_arguments(pl: Any, tmp_path: Path, scheduling: Any) -> None:
    pl.callbacks.GradientAccumulationScheduler(scheduling)
