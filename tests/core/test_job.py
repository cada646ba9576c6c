from __future__ import annotations

import pickle

import raylit as pl
from raylit.core.job import Job, Result
from raylit.testing import BoringDataModule, TinyModel

HISTORY = [
    {"epoch": 0, "step": 4, "loss": 2.0},
    {"epoch": 1, "step": 8, "loss": 1.0, "val_loss": 3.0},
]


def lines(result: Result, *keys: str) -> dict[str, list[tuple[float, float]]]:
    (axes,) = result.plot(*keys).axes
    assert axes.get_xlabel() == "step"
    return {
        str(line.get_label()): [(float(x), float(y)) for x, y in line.get_xydata()]
        for line in axes.lines
    }


def test_a_plot_shows_every_metric_where_it_was_logged() -> None:
    result = Result(history=HISTORY)
    assert lines(result) == {"loss": [(4, 2), (8, 1)], "val_loss": [(8, 3)]}
    assert lines(result, "val_loss") == {"val_loss": [(8, 3)]}


def test_a_plot_of_nothing() -> None:
    assert lines(Result()) == {}


def test_both_cross_a_process_border() -> None:
    trainer, module, data = (
        pl.Trainer(logger=False, max_epochs=3, precision="bf16"),
        TinyModel(2),
        BoringDataModule(),
    )
    job = pickle.loads(pickle.dumps(Job("fit", trainer, module, data)))
    assert (job.fn, job.trainer.max_epochs, job.trainer.precision, job.module.batch_size) == (
        "fit",
        3,
        "bf16-mixed",
        2,
    )
    job.datamodule.setup("fit")
    assert len(job.datamodule.train_dataloader()) == 64
    result = Result(metrics={"a": 1.0}, history=HISTORY, value=[1])
    assert pickle.loads(pickle.dumps(result)) == result
