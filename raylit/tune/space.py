"""The search space and settings of a sweep as data.

What stands in a sweep file, checked before anything starts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.sample import Domain

from raylit.errors import ConfigError, MissingPackageError, did_you_mean

# Each word is the function of ray.tune with the same name; `grid` is short for grid_search.
WORDS = (
    "uniform",
    "quniform",
    "loguniform",
    "qloguniform",
    "randn",
    "qrandn",
    "randint",
    "qrandint",
    "lograndint",
    "qlograndint",
    "choice",
    "grid_search",
    "grid",
)
TAKES_A_LIST = ("choice", "grid_search", "grid")
SCOPES = ("model", "data", "trainer")
SCHEDULERS = {
    "asha": ASHAScheduler,
    "hyperband": HyperBandScheduler,
    "median": MedianStoppingRule,
    "fifo": FIFOScheduler,
    "none": FIFOScheduler,
}


@dataclass
class SweepSpec:
    """What a sweep tries, and how.

    Attributes:
        space: key to values: `model.*` are arguments of the module, `data.*` of the datamodule,
            `trainer.*` of the Trainer. A value is an object of `ray.tune`, a mapping of one word to
            its arguments (`{"loguniform": [1e-4, 1e-1]}`), or a constant.
        metric: the logged value to optimize.
        mode: `min` or `max`.
        name: name of the sweep and of its MLflow run.
        search: `random` (also visits every combination of grids), `grid`, `optuna`, a mapping with
            `name` and arguments, or an object of `ray.tune`.
        scheduler: which trials are stopped early: `none`, `asha`, `hyperband`, `median`, a mapping
            with `name` and arguments, or an object.
        num_samples: number of trials; with grids, how often the grid is repeated.
        max_concurrent: trials at a time. None: as many as the cluster has room for.
        resources: what each trial reserves.
        stop: ends a trial: a mapping of metric to value; `time_budget_s` ends the sweep.
        seed: of the search.
    """

    space: dict[str, Any]
    metric: str
    mode: str = "min"
    name: str = "sweep"
    search: Any = "random"
    scheduler: Any = "none"
    num_samples: int = 1
    max_concurrent: int | None = None
    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    stop: dict[str, float] = field(default_factory=dict)
    seed: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise ConfigError(
                "A sweep needs the metric to optimize: metric='val_loss', or in a sweep file"
                " `metric: {name: val_loss, mode: min}`."
            )
        if self.mode not in ("min", "max"):
            raise ConfigError(
                f"mode={self.mode!r}: a metric is optimized with mode='min' or mode='max'."
            )
        if not self.space:
            raise ConfigError(
                "The space of the sweep is empty: name at least one key, such as `model.lr:"
                " {loguniform: [0.0001, 0.1]}`."
            )
        if not isinstance(self.num_samples, int) or self.num_samples < 1:
            raise ConfigError(
                f"num_samples={self.num_samples!r} (trials in a sweep file): give a whole number of"
                " at least 1."
            )
        if self.max_concurrent is not None and (
            not isinstance(self.max_concurrent, int) or self.max_concurrent < 1
        ):
            raise ConfigError(
                f"max_concurrent={self.max_concurrent!r}: give a whole number of at least 1, or"
                " leave it out."
            )
        self.space = {key: domain(key, value) for key, value in self.space.items()}
        has_grid = any(_is_grid(value) for value in self.space.values())
        if self.search == "grid" and any(
            isinstance(value, Domain) for value in self.space.values()
        ):
            sampled = next(key for key, value in self.space.items() if isinstance(value, Domain))
            raise ConfigError(
                f"search: grid visits only grids, but {sampled} is sampled. Write `{sampled}:"
                " {grid: [...]}`, or use search: random."
            )
        if has_grid and _name_of(self.search) not in ("random", "grid"):
            raise ConfigError(
                f"search {_name_of(self.search)!r} cannot visit grids. Use choice instead of grid,"
                " or search: random."
            )
        if any(
            not isinstance(amount, (int, float)) or amount < 0 for amount in self.resources.values()
        ):
            raise ConfigError(
                f"resources={self.resources!r}: give an amount of at least 0 for each, such as"
                " {'CPU': 2, 'GPU': 0.5}."
            )
        self.make_search()  # so that wrong names and arguments are found now
        self.make_scheduler()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SweepSpec:
        """Return the settings that a sweep file holds.

        Raises:
            ConfigError: a key is unknown, or a value wrong.
        """
        given = dict(values)
        metric = given.pop("metric", "")
        if isinstance(metric, Mapping):
            given["mode"] = metric.get("mode", "min")
            metric = metric.get("name", "")
        if "trials" in given:
            given["num_samples"] = given.pop("trials")
        known = [f.name for f in fields(cls)] + ["trials"]
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"A sweep has no setting {key!r}.{did_you_mean(str(key), known)} It has:"
                    f" {', '.join(known)}."
                )
        return cls(metric=metric, space=dict(given.pop("space", None) or {}), **given)

    @property
    def swept(self) -> list[str]:
        """The keys of the space that differ between trials: all but constants."""
        return [
            key for key, value in self.space.items() if isinstance(value, Domain) or _is_grid(value)
        ]

    @property
    def num_trials(self) -> int:
        """How many trials the sweep runs: samples times the combinations of its grids."""
        return self.num_samples * math.prod(
            len(value["grid_search"]) for value in self.space.values() if _is_grid(value)
        )

    def make_search(self) -> SearchAlgorithm | Searcher:
        """Return Ray Tune's object for `search`.

        Raises:
            ConfigError: there is no such search.
            MissingPackageError: it needs a package that is not installed.
        """
        if isinstance(self.search, (SearchAlgorithm, Searcher)):
            return self.search
        name, arguments = _named(self.search, "search")
        if name in ("random", "grid"):
            return BasicVariantGenerator(
                random_state=self.seed, **{"max_concurrent": self.max_concurrent or 0, **arguments}
            )
        if name == "optuna":
            try:
                import optuna
            except ImportError as error:
                raise MissingPackageError("optuna", "search: optuna", extra="tune") from error
            from ray.tune.search.optuna import OptunaSearch

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            return OptunaSearch(
                metric=self.metric, mode=self.mode, **{"seed": self.seed, **arguments}
            )
        raise ConfigError(
            f"search: {name!r} is not known.{did_you_mean(name, ('random', 'grid', 'optuna'))} Use"
            " random, grid, optuna, or an object of ray.tune.search."
        )

    def make_scheduler(self) -> TrialScheduler:
        """Return Ray Tune's object for `scheduler`.

        Raises:
            ConfigError: there is no such scheduler, or it does not take these arguments.
        """
        if isinstance(self.scheduler, TrialScheduler):
            if (
                "Population" in type(self.scheduler).__name__
                or "PB2" in type(self.scheduler).__name__
            ):
                raise ConfigError(
                    f"{type(self.scheduler).__name__} continues trials from each other's"
                    " checkpoints, which sweeps do not support. Use asha."
                )
            return self.scheduler
        name, arguments = _named(self.scheduler, "scheduler")
        if name not in SCHEDULERS:
            raise ConfigError(
                f"scheduler: {name!r} is not known.{did_you_mean(name, SCHEDULERS)} Use one of"
                f" {', '.join(SCHEDULERS)}, or an object of ray.tune.schedulers."
            )
        try:
            scheduler: TrialScheduler = SCHEDULERS[name](**arguments)
            return scheduler
        except (TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"scheduler: {name} does not take {arguments}: {error}.") from error


def domain(key: str, value: Any) -> Any:
    """Return Ray Tune's object for the value of one key of a space.

    Raises:
        ConfigError: the key is none of the module's, the data's or the Trainer's, the word is
            unknown, or its arguments do not fit.
    """
    scope, _, name = str(key).partition(".")
    if scope not in SCOPES or not name:
        raise ConfigError(
            f"The key {key!r} of the space does not say whose argument it"
            f" is.{did_you_mean(scope, SCOPES)} Write model.{name or scope}, data.... or"
            " trainer....."
        )
    if not isinstance(value, Mapping) or _is_grid(value):
        return value  # an object of ray.tune, or a constant
    if len(value) != 1:
        raise ConfigError(
            f"{key}: {dict(value)!r} must be one word with its arguments, such as {{loguniform:"
            " [0.0001, 0.1]}."
        )
    ((word, arguments),) = value.items()
    if word not in WORDS:
        raise ConfigError(
            f"{key}: {word!r} is no word of a space.{did_you_mean(str(word), WORDS)} There are:"
            f" {', '.join(WORDS)}."
        )
    function = getattr(tune, "grid_search" if word == "grid" else word)
    try:
        if word in TAKES_A_LIST:
            if not isinstance(arguments, list) or not arguments:
                raise TypeError("a list of values is wanted")
            return function(arguments)
        return function(**arguments) if isinstance(arguments, Mapping) else function(*arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {word} does not take {arguments!r}: {error}.") from error


def _is_grid(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and set(value) == {"grid_search"}
        and isinstance(value["grid_search"], list)
    )


def _name_of(value: Any) -> str:
    return (
        str(value.get("name"))
        if isinstance(value, Mapping)
        else value
        if isinstance(value, str)
        else type(value).__name__
    )


def _named(value: Any, what: str) -> tuple[str, dict[str, Any]]:
    """Return (name, arguments) of a name or a mapping with a name."""
    if value is None:
        return "none", {}
    if isinstance(value, str):
        return value.lower(), {}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        return value["name"].lower(), {
            key: argument for key, argument in value.items() if key != "name"
        }
    raise ConfigError(f"{what}: {value!r} is neither a name nor a mapping with the key `name`.")
