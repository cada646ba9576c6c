"""Metrics and losses among hyperparameters: made again from a checkpoint by class and arguments."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import raylit as pl
from raylit.core import importable
from raylit.testing import TinyModel
from tests.lazy import torchmetrics


class Holds(TinyModel):
    def __init__(self, thing: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()


THINGS: dict[str, Any] = {
    "metric": lambda: torchmetrics.MeanSquaredError(squared=False),
    "list": lambda: [
        torchmetrics.MeanSquaredError(),
        torchmetrics.MeanAbsoluteError(num_outputs=2),
    ],
    "accuracy": lambda: torchmetrics.Accuracy(task="multiclass", num_classes=4, average="macro"),
    "collection": lambda: torchmetrics.MetricCollection(
        {"mse": torchmetrics.MeanSquaredError(), "mae": torchmetrics.MeanAbsoluteError()},
        prefix="val_",
    ),
    "positional": lambda: torchmetrics.MetricCollection(
        [torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()]
    ),
    "loss": lambda: nn.HuberLoss(delta=0.5),
    "activation": lambda: nn.LeakyReLU(0.2),
    "mean": lambda: torchmetrics.MeanMetric(),
}


@pytest.mark.parametrize("name", THINGS)
def test_they_come_back_as_they_were(name: str, tmp_path: Path) -> None:
    """Without code from the file being run, and without a warning."""
    thing = THINGS[name]()
    path = tmp_path / "one.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        description = importable.describe(thing, Holds)
        assert description is not None
        torch.save(description, path)
        restored = importable.restore(torch.load(path, weights_only=True), Holds)
    things = thing if isinstance(thing, list) else [thing]
    for one, other in zip(
        restored if isinstance(restored, list) else [restored], things, strict=True
    ):
        assert type(one) is type(other)
        assert repr(one) == repr(other)
        if isinstance(one, (torchmetrics.Metric, torchmetrics.MetricCollection)):
            values = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([1.0, 0.0, 3.0, 2.0])
            if isinstance(one, torchmetrics.classification.MulticlassAccuracy):
                values = values[0].long(), values[1].long()
            if isinstance(one, torchmetrics.MeanAbsoluteError) and one.num_outputs == 2:
                values = values[0].reshape(2, 2), values[1].reshape(2, 2)
            if isinstance(one, torchmetrics.MeanMetric):
                values = values[:1]  # type: ignore[assignment]
            for metric in (one, other):
                metric.update(*values)
            assert str(one.compute()) == str(other.compute())


def test_a_checkpoint_of_them_loads(tmp_path: Path) -> None:
    model = Holds(THINGS["collection"]())
    trainer = pl.Trainer(
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(model)
    path = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    torch.load(path, weights_only=True)
    loaded = Holds.load_from_checkpoint(path)
    assert repr(loaded.hparams.thing) == repr(model.hparams.thing)


def test_what_is_not_exact_or_not_known_is_left_alone() -> None:
    from tests.security.own import Own

    changed = torchmetrics.MeanSquaredError()
    changed.sync_on_compute = False
    for thing in (
        changed,
        Own(),
        [Own()],
        nn.Linear(2, 2),
        nn.PReLU(),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.Sequential(nn.ReLU()),
        torchmetrics.classification.MulticlassConfusionMatrix(num_classes=5000),
    ):
        assert importable.describe(thing, Holds) is None


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("torchmetrics.multimodal.clip_score:CLIPScore", {}),
        ("torch.nn.modules.linear:Linear", {"in_features": {"plain": 1}}),
        ("builtins:eval", {"source": {"plain": "1"}}),
        (
            "torchmetrics.classification.confusion_matrix:MulticlassConfusionMatrix",
            {"num_classes": {"plain": 10**9}},
        ),
        ("torch.nn.modules.activation:PReLU", {"num_parameters": {"plain": 8}}),
        ("torch.nn.modules.loss:HuberLoss", [1]),
    ],
)
def test_a_file_cannot_have_anything_else_made(module: str, arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        importable.restore({"module": module, "arguments": arguments}, Holds)


def test_what_a_metric_has_counted_comes_back() -> None:
    used = torchmetrics.MeanSquaredError()
    used.update(torch.ones(2), torch.zeros(2))
    description = importable.describe(used, Holds)
    restored = importable.restore(description, Holds)
    assert restored.compute() == used.compute() == 1.0
    restored.update(torch.zeros(2), torch.zeros(2))
    assert restored.compute() == 0.5
    with pytest.raises(ValueError, match="a state 'x' that the metric has not"):
        importable.restore({**description, "state": {"tensors": {"x": torch.ones(1)}}}, Holds)  # type: ignore[dict-item]


class Keeps(TinyModel):
    """Puts a collection of metrics into its checkpoints itself, and wants it back."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: Any = torchmetrics.MetricCollection({"mse": torchmetrics.MeanSquaredError()})

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        checkpoint["metrics"] = self.kept
        checkpoint["loss"] = nn.MSELoss()

    def on_load_checkpoint(self, checkpoint: Any) -> None:
        assert isinstance(checkpoint["loss"], nn.MSELoss)
        self.kept = checkpoint["metrics"]


def test_objects_that_a_module_put_into_a_checkpoint(tmp_path: Path) -> None:
    """Without a warning, since nothing has to be unpickled."""
    settings: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
    }
    trainer = pl.Trainer(max_epochs=1, **settings)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer.fit(Keeps())
        path = trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        loaded = Keeps.load_from_checkpoint(path)
        pl.Trainer(max_epochs=2, **settings).fit(Keeps(), ckpt_path=path)
    assert isinstance(loaded.kept, torchmetrics.MetricCollection)
    assert list(loaded.kept) == ["mse"]
    assert not [
        one for one in told if "pickled" in str(one.message) or "objects" in str(one.message)
    ]
