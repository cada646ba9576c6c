"""What BasePredictionWriter gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from tests.parity.harness import (
    Rows,
    describe,
    errors,
    loader,
    model_class,
    parity,
    stream,
    trainer,
)


def writer(pl: Any, found: list[Any], *args: Any, **kwargs: Any) -> Any:
    class Writer(pl.callbacks.BasePredictionWriter):  # type: ignore[misc]
        def write_on_batch_end(self, *args: Any) -> None:
            trainer, module, prediction, indices, batch, batch_idx, dataloader_idx = args
            found.append(
                [
                    "batch",
                    describe(trainer),
                    describe(module),
                    prediction,
                    list(indices),
                    batch,
                    batch_idx,
                    dataloader_idx,
                ]
            )

        def write_on_epoch_end(
            self, trainer: Any, module: Any, predictions: Any, indices: Any
        ) -> None:
            found.append(["epoch", describe(trainer), describe(module), predictions, indices])
            found.append(
                [
                    list(trainer.predict_loop.predictions),
                    list(trainer.predict_loop.epoch_batch_indices),
                ]
            )

    return Writer(*args, **kwargs)


def model(pl: Any, several: bool) -> Any:
    if not several:
        return model_class(pl)()

    class Several(model_class(pl)):  # type: ignore[misc]
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self(batch)

    return Several()


LOADERS: dict[str, Any] = {
    "one": lambda: loader(4, short=1),
    "dropping": lambda: loader(4, short=1, drop_last=True),
    "shuffled": lambda: loader(4, shuffle=True),
    "workers": lambda: loader(4, num_workers=1),
    "batch sampler": lambda: DataLoader(
        Rows(7), batch_sampler=BatchSampler(SequentialSampler(range(7)), 3, drop_last=False)
    ),
    "unbatched": lambda: DataLoader(Rows(3), batch_size=None),
    "stream": lambda: stream(3),
    "list": lambda: [torch.ones(2, 4), torch.zeros(1, 4)],
    "two": lambda: [loader(3), loader(2, short=1, shuffle=True)],
}


@parity
@pytest.mark.parametrize("return_predictions", [True, False])
@pytest.mark.parametrize("interval", ["batch", "epoch", "batch_and_epoch"])
@pytest.mark.parametrize("kind", LOADERS)
def test_what_is_written(
    pl: Any, tmp_path: Path, kind: str, interval: str, return_predictions: bool
) -> Any:
    found: list[Any] = []
    one = trainer(
        pl,
        tmp_path,
        callbacks=[writer(pl, found, interval)],
        limit_predict_batches=2 if kind == "workers" else 1.0,
    )
    data = LOADERS[kind]()
    for _ in range(2):
        found.append(
            one.predict(
                model(pl, kind in ("two", "list")), data, return_predictions=return_predictions
            )
        )
    return found


@parity
def test_batch_is_the_default(pl: Any, tmp_path: Path) -> Any:
    callback = pl.callbacks.BasePredictionWriter()
    return [str(callback.interval.value), callback.interval.on_batch, callback.interval.on_epoch]


@errors
def test_unknown_interval(pl: Any, tmp_path: Path) -> Any:
    pl.callbacks.BasePredictionWriter("step")


@errors
@pytest.mark.parametrize("interval", ["batch", "epoch"])
def test_methods_that_are_not_overridden(pl: Any, tmp_path: Path, interval: str) -> Any:
    trainer(pl, tmp_path, callbacks=[pl.callbacks.BasePredictionWriter(interval)]).predict(
        model_class(pl)(), loader(2)
    )
