"""Spaces and settings of sweeps as data."""

from __future__ import annotations

from typing import Any

import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Float, Integer

from raylit.errors import ConfigError
from raylit.tune import SweepSpec
from raylit.tune.space import WORDS, domain


def spec(**settings: Any) -> SweepSpec:
    return SweepSpec(
        **{"space": {"model.lr": {"uniform": [0.0, 1.0]}}, "metric": "val_loss", **settings}
    )


@pytest.mark.parametrize(
    ("value", "kind", "lower", "upper"),
    [
        ({"uniform": [0.1, 0.5]}, Float, 0.1, 0.5),
        ({"loguniform": [1e-4, 1e-1]}, Float, 1e-4, 1e-1),
        ({"loguniform": {"lower": 1e-4, "upper": 1e-1}}, Float, 1e-4, 1e-1),
        ({"quniform": [0.0, 1.0, 0.25]}, Float, 0.0, 1.0),
        ({"randint": [2, 9]}, Integer, 2, 9),
        ({"lograndint": [2, 9]}, Integer, 2, 9),
    ],
)
def test_words_are_ray_tunes(value: Any, kind: type, lower: float, upper: float) -> None:
    made = domain("model.lr", value)
    assert isinstance(made, kind)
    assert (made.lower, made.upper) == (lower, upper)
    assert all(lower <= made.sample() <= upper for _ in range(50))


def test_every_word_is_a_function_of_ray_tune() -> None:
    assert [
        word
        for word in WORDS
        if not callable(getattr(tune, "grid_search" if word == "grid" else word, None))
    ] == []


def test_choices_grids_objects_and_constants() -> None:
    choice = domain("model.width", {"choice": [8, 16]})
    assert isinstance(choice, Categorical)
    assert choice.categories == [8, 16]
    assert domain("model.width", {"grid": [8, 16]}) == tune.grid_search([8, 16])
    own = tune.uniform(0, 1)
    assert domain("model.lr", own) is own
    assert domain("trainer.max_epochs", 3) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": ""}, "needs the metric to optimize"),
        ({"mode": "lowest"}, "mode='lowest'"),
        ({"space": {}}, "space of the sweep is empty"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"space": {"lr": 0.1}}, r"Write model\.lr"),
        ({"space": {"modle.lr": 0.1}}, "[Dd]id you mean .*model"),
        ({"space": {"model.lr": {"loguniforn": [1, 2]}}}, "[Dd]id you mean .*loguniform"),
        ({"space": {"model.lr": {"loguniform": [1, 2], "choice": [1]}}}, "must be one word"),
        ({"space": {"model.lr": {"loguniform": [1, 2, 3, 4]}}}, "loguniform does not take"),
        ({"space": {"model.lr": {"choice": 3}}}, "a list of values is wanted"),
        ({"search": "optunna"}, "[Dd]id you mean .*optuna"),
        ({"scheduler": "ahsa"}, "[Dd]id you mean .*asha"),
        ({"scheduler": {"name": "asha", "patience": 3}}, "asha does not take .*patience"),
        ({"scheduler": {"max_t": 3}}, "neither a name nor a mapping"),
        (
            {"scheduler": PopulationBasedTraining(hyperparam_mutations={"model.lr": [1, 2]})},
            "which sweeps do not support",
        ),
        ({"search": "optuna", "space": {"model.lr": {"grid": [1, 2]}}}, "cannot visit grids"),
        ({"resources": {"CPU": -1}}, "resources"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        spec(**settings)


def test_sweep_file_reads_as_settings() -> None:
    made = SweepSpec.from_dict(
        {
            "name": "lr",
            "metric": {"name": "val_acc", "mode": "max"},
            "space": {"model.lr": {"grid": [1, 2, 3]}, "model.width": {"grid": [8, 16]}},
            "search": "grid",
            "scheduler": {"name": "asha", "max_t": 9},
            "trials": 2,
            "max_concurrent": 3,
            "resources": {"CPU": 2},
            "stop": {"val_acc": 0.99},
        }
    )
    assert (made.name, made.metric, made.mode, made.num_samples, made.max_concurrent) == (
        "lr",
        "val_acc",
        "max",
        2,
        3,
    )
    assert made.num_trials == 12
    assert made.resources == {"CPU": 2}


def test_unknown_key_of_a_sweep_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no setting 'shceduler'.*scheduler"):
        SweepSpec.from_dict({"metric": "a", "space": {"model.lr": 1}, "shceduler": "asha"})


def test_names_become_objects_of_ray_tune() -> None:
    scheduler = spec(scheduler={"name": "asha", "max_t": 9}).make_scheduler()
    assert isinstance(scheduler, ASHAScheduler)
    assert isinstance(spec().make_search(), BasicVariantGenerator)
    assert isinstance(spec(search="optuna", seed=1).make_search(), OptunaSearch)


def test_seed_makes_the_search_repeatable() -> None:
    def drawn() -> list[float]:
        search = spec(seed=3, num_samples=4).make_search()
        search.add_configurations(
            {
                "e": {
                    "run": lambda config: None,
                    "config": {"model.lr": tune.uniform(0, 1)},
                    "num_samples": 4,
                }
            }
        )
        return [search.next_trial().config["model.lr"] for _ in range(4)]

    assert drawn() == drawn()
