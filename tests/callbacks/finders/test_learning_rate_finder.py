from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import raylit as pl
from raylit.callbacks import LearningRateFinder
from raylit.callbacks.finders.learning_rate_finder import LRFinderResult
from raylit.errors import ConfigError
from raylit.testing import RandomDataset, TinyModel
from tests.lazy import matplotlib
from tests.quiet import UNLOGGED
from tests.ranks import run_on_two_ranks


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


class Rated(TinyModel):
    """20 batches, with a learning rate to be found."""

    def __init__(self, lr: float = 0.1, sign: float = 1.0) -> None:
        super().__init__()
        self.lr, self.sign = lr, sign

    def step(self, batch: Any) -> Any:
        return self.sign * super().step(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def _loader(self, seed: int) -> Any:
        return DataLoader(RandomDataset(32, 80, seed), batch_size=4)


def fit(model: Any, finder: Any, folder: Path, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        callbacks=[finder],
        enable_checkpointing=False,
        default_root_dir=folder,
        **{**UNLOGGED, "max_epochs": 3, **settings},
    )
    trainer.fit(model)
    return trainer


def valley() -> LRFinderResult:
    """A loss that falls around 1e-3 and rises again."""
    found = LRFinderResult("exponential", 1e-5, 1.0, 60)
    lrs = [1e-5 * 1e5 ** (step / 59) for step in range(60)]
    found.results = {"lr": lrs, "loss": [2 - math.tanh(lr / 1e-3) + 3 * lr**2 for lr in lrs]}
    return found


def test_what_is_skipped_and_what_is_not_finite_is_not_suggested() -> None:
    found = valley()
    assert found.suggestion() == found.results["lr"][10]
    assert found.suggestion(skip_begin=20) == found.results["lr"][20]
    found.results["loss"][20] = math.nan
    assert found.suggestion(skip_begin=20) == found.results["lr"][21]
    assert found.suggestion(skip_begin=20, skip_end=0) == found.results["lr"][21]
    with pytest.warns(UserWarning, match="two are needed"):
        assert found.suggestion(skip_begin=58) is None


def test_it_is_drawn(tmp_path: Path) -> None:
    matplotlib.use("Agg")
    found = valley()
    figure = found.plot(suggest=True)
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == (
        "log",
        "Learning rate",
        "Loss",
    )
    line, point = axes.lines
    assert list(line.get_xdata()) == found.results["lr"]
    assert list(point.get_xdata()) == [found.suggestion()]
    _, own = matplotlib.pyplot.subplots()
    assert found.plot(ax=own) is own.figure
    assert len(own.lines) == 1
    figure.savefig(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").stat().st_size > 5000
    matplotlib.pyplot.close("all")


def test_negative_losses_end_no_search(tmp_path: Path) -> None:
    finder = LearningRateFinder(max_lr=1e-3, num_training_steps=30)
    fit(Rated(sign=-1.0), finder, tmp_path)
    assert finder.optimal_lr is not None
    assert max(finder.optimal_lr.results["loss"]) < 0
    assert len(finder.optimal_lr.results["lr"]) == 30


class InLaterEpochs(LearningRateFinder):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.found: dict[int, Any] = {}

    def on_fit_start(self, *args: Any) -> None: ...

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.lr_find(trainer, pl_module)
        self.found[trainer.current_epoch] = self.optimal_lr


def test_a_search_in_a_later_epoch_is_as_long_as_in_the_first(tmp_path: Path) -> None:
    finder = InLaterEpochs(num_training_steps=15, max_lr=0.01)
    trainer = fit(Rated(), finder, tmp_path)
    assert {epoch: len(one.results["loss"]) for epoch, one in finder.found.items()} == {
        0: 15,
        1: 15,
        2: 15,
    }
    assert (trainer.current_epoch, trainer.global_step) == (3, 60)


def test_searches_leave_no_trace_in_a_fit(tmp_path: Path) -> None:
    """Weights, random numbers and logged values are bit for bit those of a fit without searches."""
    states = []
    for finder in (
        InLaterEpochs(num_training_steps=5, update_attr=False),
        LearningRateFinder(num_training_steps=5, update_attr=False),
        None,
    ):
        torch.manual_seed(0)
        model = Rated()
        trainer = fit(model, finder or pl.callbacks.Callback(), tmp_path, precision="bf16-mixed")
        weights = torch.cat([value.flatten() for value in model.state_dict().values()])
        states.append(
            (
                weights.tolist(),
                torch.rand(1).item(),
                {name: value.item() for name, value in trainer.callback_metrics.items()},
            )
        )
    assert states[0][0] == states[1][0] == states[2][0]
    assert states[1] == states[2]
    assert states[0] == states[2]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mode": "cubic"}, "exponential"),
        ({"max_lr": 0}, "give numbers above 0"),
        ({"min_lr": 0}, "give numbers above 0"),
        ({"min_lr": -1, "mode": "linear"}, "give numbers above 0"),
        ({"num_training_steps": 0}, "at least 1"),
    ],
)
def test_wrong_arguments(arguments: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        LearningRateFinder(**arguments)


def test_it_says_which_attribute_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"TinyModel has no lr nor learning_rate.*attr_name"):
        fit(TinyModel(), LearningRateFinder(), tmp_path)


def test_manual_optimization_that_does_not_step_the_scheduler_is_told(tmp_path: Path) -> None:
    model = Rated()
    model.automatic_optimization = False
    with pytest.warns(UserWarning, match="did not rise"):
        fit(
            model,
            LearningRateFinder(num_training_steps=5, update_attr=False),
            tmp_path,
            max_epochs=1,
        )


def search_on_ranks(folder: str) -> Any:
    torch.manual_seed(0)
    model = Rated()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = pl.Tuner(pl.Trainer(max_epochs=4, default_root_dir=folder, **UNLOGGED)).lr_find(
        model, max_lr=1e4, num_training=40
    )
    assert found is not None
    unchanged = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return found.results, model.lr, unchanged


def test_two_ranks_find_the_same(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(search_on_ranks, tmp_path)
    assert zero == one
    results, lr, unchanged = zero
    assert unchanged
    assert 13 <= len(results["lr"]) < 40
    assert lr in results["lr"]
