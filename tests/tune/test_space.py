"""Spaces and settings of sweeps as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.schedulers.pb2 import PB2
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.sample import Categorical, Float, Integer

from raylit.errors import ConfigError
from raylit.tune import SweepSpec, sweep
from raylit.tune.direction import direction_of
from raylit.tune.search import OptunaSearcher
from raylit.tune.space import WORDS, examples, flatten, numbers_of, read_space
from raylit.tune.stops import make_stopper, seconds


def spec(**settings: Any) -> SweepSpec:
    return SweepSpec(
        **{"space": {"model.lr": {"uniform": [0.0, 1.0]}}, "metric": "val_loss", **settings}
    )


def domain(key: str, value: Any) -> Any:
    (made,) = read_space({key: value}).values()
    return made


CONDITIONAL = {
    "model": {
        "choice": [
            {"class_path": "A", "init_args": {"width": {"randint": [8, 64]}}},
            {"class_path": "B", "init_args": {"depth": {"choice": [2, 4]}}},
        ]
    },
    "data": {"batch_size": {"choice": [16, 32]}},
}


BOUNDS = {"model.lr": [0.1, 1.0]}


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
            {"scheduler": {"name": "pbt", "hyperparam_mutations": {"model.lrr": [1, 2]}}},
            "Did you mean 'model.lr'",
        ),
        ({"space": {"model.lr": {"uniform": [1, 1]}}}, "empty range"),
        ({"space": {"model.lr": {"uniform": [2, 1]}}}, r"reversed: write \[1, 2\]"),
        ({"space": {"model.lr": tune.uniform(2, 1)}}, "reversed"),
        ({"space": {"model.lr": {"quniform": [0, 1, 0.3]}}}, "q=0.3 does not divide the bound 1"),
        ({"space": {"model.lr": {"qrandint": [0, 10, 3]}}}, "q=3 does not divide the bound 10"),
        ({"space": {"model.lr": {"uniform": [True, 2]}}}, "wants numbers, but lower is True"),
        ({"space": {"model.lr": {"uniform": {"low": 1, "upper": 2}}}}, "Did you mean 'lower'"),
        ({"space": {"model.lr": {"choice": []}}}, "empty"),
        ({"metric": {"name": "a", "mod": "max"}}, "Did you mean 'mode'"),
        ({"metric": [{"name": "a"}, {"name": "a"}]}, "named twice"),
        ({"metric": {"name": "a", "mode": "maxx"}}, "Did you mean 'max'"),
        ({"name": "a/b"}, "name of a folder"),
        ({"stop": {"time_budget": -3}}, "give seconds, or a time with units"),
        ({"stop": {"time_budget": "1 parsec"}}, "give seconds"),
        ({"stop": {"time_bugdet": "1h"}}, "Did you mean 'time_budget'"),
        ({"stop": {"target": True}}, "give a number"),
        ({"stop": {"plateau": 5}}, "plateau is 5: give true, false, or a mapping"),
        ({"stop": {"trial_plateau": "x"}}, r"such as \{std: 0.01, num_results: 4\}"),
        (
            {
                "space": {"model.n": {"choice": [{"uniform": [0, 1]}, 3]}},
                "points": [{"model.n": 2}],
            },
            "none of",
        ),
        ({"resources": {"cpu": 1}}, "did you mean 'CPU'"),
        ({"resources": {"CPU": True}}, "CPU is True"),
        ({"resources": {"CPU": 1, "num_workers": 0}}, "num_workers=0"),
        ({"num_samples": True}, "num_samples"),
        ({"max_failures": -1}, "max_failures"),
        ({"points": [{"model.lrr": 1}]}, "Did you mean 'model.lr'"),
        ({"points": [{"model.lr": 7}]}, "not between 0.0 and 1.0"),
        ({"points": [{"model.lr": "high"}]}, "not between 0.0 and 1.0"),
        ({"points": [{"model.lr": True}]}, "not between 0.0 and 1.0"),
        ({"points": ["model.lr"]}, "is no mapping"),
        (
            {"space": {"model.n": {"randint": [1, 4]}}, "points": [{"model.n": 4}]},
            "no whole number from 1 to 3",
        ),
        (
            {"space": {"model.n": {"randint": [1, 4]}}, "points": [{"model.n": 2.5}]},
            "no whole number from 1 to 3",
        ),
        (
            {"space": {"model.lr": {"quniform": [0, 1, 0.1]}}, "points": [{"model.lr": 0.15}]},
            "no multiple of 0.1",
        ),
        ({"stop": {"val_score": 0.3}}, "does not tell whether a trial ends above or below"),
        ({"points": {"model.lr": 0.5}}, "a list of mappings"),
        ({"warm_start": 3}, "warm_start=3: give the name"),
        ({"resources": {"GPUs": 1}}, "did you mean 'GPU'"),
        ({"space": {"model.lr": {"sample_from": "f"}}}, "Use it in Python"),
        ({"space": {"model.lr": {"choice": [1, 2]}}, "scheduler": "pb2"}, "no range of numbers"),
        ({"space": {"model.lr": 3}, "scheduler": "pbt"}, "nothing that is sampled"),
        ({"search": {"name": "optuna", "sampler": "tppe"}}, "Did you mean 'tpe'"),
        ({"search": "optuna", "space": {"model.lr": {"randn": [0, 1]}}}, "no normal distribution"),
        ({"search": "grid"}, "visits only grids"),
        ({"search": "optuna", "space": {"model.lr": {"grid": [1, 2]}}}, "cannot visit grids"),
        ({"resources": {"CPU": -1}}, "resources"),
        ({"search": "optuna", "scheduler": "pbt"}, "Use search: random"),
        ({"search": "optuna", "scheduler": PB2(hyperparam_bounds=BOUNDS)}, "Use search: random"),
        ({"scheduler": "bohb"}, "Use search: bohb"),
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


def test_trials_beside_num_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="two names of the same number"):
        SweepSpec.from_dict(
            {"metric": "a", "space": {"model.lr": 1}, "trials": 2, "num_samples": 2}
        )


def test_names_become_objects_of_ray_tune() -> None:
    scheduler = spec(scheduler={"name": "asha", "max_t": 9}).make_scheduler()
    assert isinstance(scheduler, ASHAScheduler)
    assert isinstance(spec(scheduler="pbt").make_scheduler(), PopulationBasedTraining)
    assert isinstance(spec(scheduler="pb2").make_scheduler(), PB2)
    for epochs, interval in ((None, 4), (-1, 4), (3, 1), (10, 2), (50, 4)):  # several in each fit
        population: Any = spec(scheduler="pbt").make_scheduler(epochs)
        assert population._perturbation_interval == interval
    assert isinstance(spec().make_search(), BasicVariantGenerator)
    assert isinstance(spec(search="optuna", seed=1).make_search(), OptunaSearcher)


@pytest.mark.parametrize(
    "search",
    ["tpe", "nsga2", "qmc", {"name": "tpe", "seed": 3}, {"name": "optuna", "sampler": "QMC"}],
    ids=str,
)
def test_a_search_that_goes_on_or_begins_warm_repeats_no_trial(search: Any) -> None:
    space = {"model.lr": {"uniform": [0, 1]}, "model.width": {"uniform": [1, 64]}}
    settings: Any = {"search": search, "space": space, "seed": 5}
    points = [{"model.lr": 0.25, "model.width": 8.0}, {"model.lr": 0.5, "model.width": 16.0}]

    def drawn(number: int, made: Any) -> list[float]:
        values = []
        for trial in range(number):
            values.append(made.suggest(str(trial))["model.lr"])
            made.on_trial_complete(str(trial), {"val_loss": 1.0 + trial})
        return values

    whole = drawn(4, spec(**settings).make_search())
    assert drawn(4, spec(**settings).make_search()) == whole, "the seed counts"
    begun = [{"model.lr": value, "model.width": 4.0} for value in whole[:2]]
    again = drawn(5, spec(**settings).make_search(begun, begun=2))
    assert again[:2] == pytest.approx(whole[:2])
    assert not {round(one, 6) for one in again[2:]} & {round(one, 6) for one in whole[:2]}
    earlier = [(point, [1.0]) for point in begun]
    warm = drawn(3, spec(**settings).make_search([], earlier))
    assert not {round(one, 6) for one in warm} & {round(one, 6) for one in whole[:2]}
    # points that were not begun yet come next
    described = spec(**settings, points=points)
    assert sweep._points(described, []) == points
    assert sweep._points(described, [points[0]]) == points
    assert sweep._points(described, [*points, begun[0]]) == [*points, begun[0]]


@pytest.mark.parametrize(
    ("kind", "below", "above"),
    [
        ({"uniform": [0.5, 1]}, 0.5, 1.0),
        ({"loguniform": [0.1, 2]}, 0.1, 2.0),
        ({"quniform": [0.25, 1, 0.25]}, 0.25, 1.0),
        ({"randint": [2, 9]}, 2, 8),
        ({"qrandint": [4, 12, 4]}, 4, 12),
    ],
)
def test_population_based_training_stays_within_the_space(
    kind: dict[str, Any], below: float, above: float
) -> None:
    for settings in (
        {"scheduler": "pbt"},
        {"scheduler": {"name": "pbt", "hyperparam_mutations": {"model.n": kind}}},
    ):
        made = spec(space={"model.n": kind}, **settings).make_scheduler()
        assert isinstance(made, PopulationBasedTraining)
        explore = made._custom_explore_fn
        assert explore({"model.n": 0.01, "other": 7}) == {"model.n": below, "other": 7}
        assert explore({"model.n": 50})["model.n"] == above
        middle = explore({"model.n": (below + above) / 2})["model.n"]
        assert below <= middle <= above and type(middle) is type(below)


def test_the_users_own_exploration_comes_last() -> None:
    def double(config: dict[str, Any]) -> dict[str, Any]:
        return {"model.n": config["model.n"] * 2}

    made = spec(
        space={"model.n": {"uniform": [0, 1]}},
        scheduler={"name": "pbt", "custom_explore_fn": double},
    ).make_scheduler()
    assert made._custom_explore_fn({"model.n": 3.0}) == {"model.n": 2.0}


def test_the_last_values_of_ranges_may_be_points() -> None:
    space = {
        "model.n": {"randint": [1, 4]},
        "model.q": {"qrandint": [0, 9, 3]},
        "model.x": {"quniform": [0, 1, 0.1]},
    }
    point = {"model.n": 3, "model.q": 9, "model.x": 0.3}
    assert spec(space=space, points=[point]).points == [point]


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("val_loss", "min"),
        ("val/mean_dice", "max"),
        ("val_hits@10", "max"),
        ("val_top5", "max"),
        ("val_auc_loss", "min"),
        ("val_inaccuracy", "min"),
        ("val_RMSE", "min"),
        ("val_score", None),
        ("valid", None),
        ("neg_log_loss", None),
    ],
)
def test_names_tell_whether_more_is_better(metric: str, direction: str | None) -> None:
    assert direction_of(metric) == direction


def test_a_trial_ends_at_a_better_value_and_a_missing_metric_is_told() -> None:
    stops = make_stopper(spec(metric="val_acc", mode="max", stop={"val_loss": 0.1}))
    logged = {"logged": ["val_acc", "val_loss"], "val_acc": 0.5}
    assert not stops("a", {**logged, "val_loss": 0.2})
    assert stops("a", {**logged, "val_loss": 0.1})
    missing = make_stopper(spec(stop={"val_acc": 0.9}))
    with pytest.warns(UserWarning, match="trials log no 'val_acc'"):
        missing("a", {"logged": ["val_loss"], "val_loss": 0.2})


def test_a_plateau_that_is_false_is_none() -> None:
    stops = spec(stop={"plateau": False, "trial_plateau": None}).make_stopper()
    assert stops._by_word == {}
    assert set(spec(stop={"plateau": True}).make_stopper()._by_word) == {"plateau"}


def test_a_plateau_survives_a_trial_that_reported_nothing() -> None:
    stops = make_stopper(spec(stop={"plateau": {}}))
    assert not stops("a", {"training_iteration": 0, "how": "failed", "done": True})
    assert not stops("b", {"logged": ["val_loss"], "val_loss": 0.2})
    assert not stops.stop_all()


def test_numbers_with_exponents_are_numbers() -> None:
    assert numbers_of({"a": ["1e-4", "x1e-4", "2.5E3"]}) == {"a": [1e-4, "x1e-4", 2500.0]}


@pytest.mark.parametrize(
    ("given", "wanted"), [("1h", 3600), ("1h30m", 5400), ("90s", 90), (12, 12), ("2d", 172800)]
)
def test_times_have_units(given: Any, wanted: float) -> None:
    assert seconds(given) == wanted


def check_branch(config: dict[str, Any]) -> str:
    model = config["model"]
    if model["class_path"] == "A":
        assert set(model["init_args"]) == {"width"} and 8 <= model["init_args"]["width"] < 64
    else:
        assert set(model["init_args"]) == {"depth"} and model["init_args"]["depth"] in (2, 4)
    assert config["data.batch_size"] in (16, 32)
    return str(model["class_path"])


def test_each_draw_of_a_conditional_space_has_only_its_branch() -> None:
    made = spec(space=CONDITIONAL, search="optuna", seed=1)
    searcher = made.make_search()
    assert isinstance(searcher, OptunaSearcher)
    drawn = [searcher.suggest(str(number)) for number in range(20)]
    assert {check_branch(config) for config in drawn} == {"A", "B"}
    search = spec(space=CONDITIONAL, num_samples=20, seed=1).make_search()
    assert isinstance(search, BasicVariantGenerator)
    search.add_configurations(
        {"e": {"run": lambda config: None, "config": made.space, "num_samples": 20}}
    )
    trials = [search.next_trial() for _ in range(20)]
    assert {check_branch(trial.config) for trial in trials if trial is not None} == {"A", "B"}
    assert all(set(flatten(config)) > {"model.class_path", "data.batch_size"} for config in drawn)
    assert len(list(examples(made.space["model"]))) >= 5


def test_points_are_tried_first_and_earlier_trials_are_known() -> None:
    point = {"model": {"class_path": "B", "init_args": {"depth": 4}}, "data.batch_size": 32}
    made = spec(space=CONDITIONAL, search="tpe", seed=1, points=[point])
    searcher = made.make_search(earlier=[(point, [0.5]), ({"model": {"class_path": "C"}}, [0.1])])
    assert isinstance(searcher, OptunaSearcher)
    assert searcher.suggest("0") == point
    assert [trial.value for trial in searcher._study.trials[:1]] == [0.5]


@pytest.mark.parametrize(
    ("options", "recorded", "drawn"),
    [
        ([{"uniform": [0.1, 0.5]}, None], None, None),
        ([{"uniform": [0.1, 0.5]}, {"uniform": [0.6, 0.9]}], 0.7, 0.7),
        ([{"randint": [1, 5]}, {"quniform": [0, 4, 0.5]}], 2.5, 2.5),
        (tune.choice([(64, 64), (128,)]), [128], (128,)),
        (tune.choice(list(np.array([32, 64]))), 64, 64),
    ],
)
def test_what_was_recorded_is_found_among_the_options(
    options: Any, recorded: Any, drawn: Any
) -> None:
    """Points, and trials of a sweep that goes on, come from files."""
    space = {"model.n": {"choice": options} if isinstance(options, list) else options}
    made = spec(space=space, search="tpe", seed=1, points=[{"model.n": recorded}])
    searcher = made.make_search(earlier=[({"model.n": recorded}, [0.5])])
    assert isinstance(searcher, OptunaSearcher)
    assert len(searcher._study.get_trials(states=[TrialState.COMPLETE])) == 1
    found = searcher.suggest("0")["model.n"]
    assert found == drawn and type(found) is type(drawn)


def test_grids_of_a_conditional_space_are_counted() -> None:
    inner = [
        {"class_path": "A", "init_args": {"width": {"grid": [1, 2, 3]}}},
        {"class_path": "B", "init_args": {"depth": 2}},
    ]
    assert spec(space={"model": {"grid": inner}, "model.lr": {"grid": [1, 2]}}).num_trials == 8


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
