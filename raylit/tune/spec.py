"""SweepSpec: the settings of a sweep, as in a sweep file, checked before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypedDict

from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.stopper import Stopper

from raylit.errors import did_you_mean
from raylit.runtime.aliases import Arguments
from raylit.tune import schedule, stops
from raylit.tune.aliases import Values
from raylit.tune.search import make_search, named
from raylit.tune.space import (
    SweepError,
    check_point,
    combinations,
    domains,
    is_grid,
    is_swept,
    numbers_of,
    read_space,
)

METRIC_KEYS = ("name", "mode")
RESOURCES = ("CPU", "GPU", "memory", "num_workers")
NAME = re.compile(r"[\w.\- ]+")


class SweepSettings(TypedDict, total=False):
    """The settings of a sweep as keywords of `Tuner.sweep`; see SweepSpec for their meaning."""

    space: Mapping[str, object]
    metric: str | Sequence[Mapping[str, str]]
    mode: Literal["min", "max"]
    name: str
    search: object
    scheduler: object
    num_samples: int
    max_concurrent: int | None
    resources: Mapping[str, float]
    stop: Mapping[str, object] | Stopper
    seed: int | None
    points: list[Values]
    warm_start: str | None
    max_failures: int
    isolate: bool


@dataclass
class SweepSpec:
    """A sweep: the values that it tries, and how.

    Attributes:
        space: names to values: `model.*` are arguments of the module, `data.*` of the datamodule,
            `trainer.*` of the Trainer, `trainer.callbacks.EarlyStopping.*` of one of its callbacks.
            On the command line also `optimizer.*`, `lr_scheduler.*` and `seed_everything`. A value
            is an object of `ray.tune`, a mapping of one word to its arguments (`{"loguniform":
            [1e-4, 1e-1]}`), a constant, or a mapping of further names. A choice among mappings with
            words of their own makes a conditional space.
        metric: the logged value to optimize; or several, as a list of `{"name": ..., "mode": ...}`.
        mode: `min` or `max`.
        name: name of the sweep and of its MLflow run.
        search: `random` (also visits every combination of grids), `grid`, `optuna`, `tpe`, `cmaes`,
            `nsga2`, `hyperopt`, `bayesopt`, `bohb`, a mapping with `name` and arguments, or an
            object of `ray.tune`.
        scheduler: which trials are stopped early: `none`, `asha`, `hyperband`, `median`, `pbt`,
            `pb2`, a mapping with `name` and arguments, or an object.
        num_samples: number of trials; with grids, how often the grid is repeated. `trials` in a
            sweep file.
        max_concurrent: trials at a time. None: as many as the cluster has room for.
        resources: what each trial reserves, such as `{"CPU": 2, "GPU": 0.5}`; with `num_workers`,
            what each of so many Ray workers of a trial reserves.
        stop: when a trial ends (`{"val_acc": 0.99}`: at this value or a better one; or after so
            many `reports`), and when the sweep does:
            `time_budget` (`1h`), `target`, `plateau`.
        seed: of the search, and of the trials, each of which has one that follows from its number.
            None: PL_GLOBAL_SEED, else a new one.
        points: values to try first.
        warm_start: a sweep (its folder), or an MLflow run of one, whose trials the search is to
            know.
        max_failures: how often a trial that failed is started again, from its recovery checkpoint.
        isolate: whether each trial has a process of its own.
    """

    space: Mapping[str, object]
    metric: Any
    mode: str = "min"
    name: str = "sweep"
    search: object = "random"
    scheduler: object = "none"
    num_samples: int = 1
    max_concurrent: int | None = None
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    stop: Mapping[str, object] | Stopper = field(default_factory=dict)
    seed: int | None = None
    points: list[Values] = field(default_factory=list)
    warm_start: str | None = None
    max_failures: int = 0
    isolate: bool = False
    metrics: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._read_metrics()
        self._check_name()
        if not isinstance(self.space, Mapping) or not self.space:
            raise SweepError(
                "The space of the sweep is empty: name at least one key, such as `model.lr:"
                " {loguniform: [0.0001, 0.1]}`.",
                ("space",),
            )
        _whole_number("num_samples", self.num_samples, 1, "trials")
        if self.max_concurrent is not None:
            _whole_number("max_concurrent", self.max_concurrent, 1)
        _whole_number("max_failures", self.max_failures, 0)
        if self.seed is not None:
            _whole_number("seed", self.seed, 0)
        if not isinstance(self.isolate, bool):
            raise SweepError(f"isolate={self.isolate!r}: give true or false.", ("isolate",))
        self.space = read_space(self.space)
        if not isinstance(self.points, list):
            raise SweepError(
                f"points={self.points!r}: give a list of mappings, such as [{{model.lr: 0.01}}].",
                ("points",),
            )
        if self.warm_start is not None and not isinstance(self.warm_start, str):
            raise SweepError(
                f"warm_start={self.warm_start!r}: give the name or folder of a sweep, or the id of"
                " its run in MLflow.",
                ("warm_start",),
            )
        self.points = [
            check_point(point, self.space, ("points", index))
            for index, point in enumerate(self.points)
        ]
        self._check_grids()
        self._check_resources()
        # so that wrong names and arguments are found now
        schedule.check_together(self.make_search(), self.make_scheduler())
        self.make_stopper()

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> SweepSpec:
        """Return the settings that a sweep file holds.

        Raises:
            SweepError: a key is unknown, or a value wrong.
        """
        return cls.of(numbers_of(values))

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> SweepSpec:
        """Return the settings of a sweep that were given by their names.

        Raises:
            SweepError: a name is unknown, or a value wrong.
        """
        given: Arguments = dict(settings)
        known = [f.name for f in fields(cls) if f.init] + ["trials"]
        for key in given:
            if key not in known:
                raise SweepError(
                    f"A sweep has no setting {key!r}.{did_you_mean(str(key), known)} It has:"
                    f" {', '.join(known)}.",
                    (key,),
                )
        if "trials" in given:
            if "num_samples" in given:
                raise SweepError(
                    "trials and num_samples are two names of the same number. Give one.",
                    ("num_samples",),
                )
            given["num_samples"] = given.pop("trials")
        metric = given.pop("metric", "")
        return cls(metric=metric, space=given.pop("space", None) or {}, **given)

    def _read_metrics(self) -> None:
        """Learn the metrics, of which the first is `metric` and `mode` from now on."""
        several = self.metric if isinstance(self.metric, list) else [self.metric]
        found: dict[str, str] = {}
        for index, one in enumerate(several):
            path = ("metric", index) if isinstance(self.metric, list) else ("metric",)
            name = one
            mode = self.mode
            if isinstance(one, Mapping):
                for key in one:
                    if key not in METRIC_KEYS:
                        raise SweepError(
                            f"metric has no key {key!r}.{did_you_mean(str(key), METRIC_KEYS)} It"
                            f" has: {', '.join(METRIC_KEYS)}.",
                            (*path, key),
                        )
                name = one.get("name")
                mode = one.get("mode", self.mode)
            if not isinstance(name, str) or not name:
                raise SweepError(
                    "A sweep needs the metric to optimize: metric='val_loss', or in a sweep file"
                    " `metric: {name: val_loss, mode: min}`.",
                    path,
                )
            if mode not in ("min", "max"):
                raise SweepError(
                    f"mode={mode!r}: a metric is optimized with mode='min' or mode='max'."
                    f"{did_you_mean(str(mode), ('min', 'max'))}",
                    (*path, "mode"),
                )
            if name in found:
                raise SweepError(f"The metric {name!r} is named twice.", path)
            found[name] = mode
        if not found:
            raise SweepError("metric is an empty list: name at least one.", ("metric",))
        self.metrics = found
        self.metric, self.mode = next(iter(found.items()))

    def _check_name(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise SweepError(
                f"name={self.name!r} is to be the name of a folder: use letters, digits, spaces and"
                " the characters . - _",
                ("name",),
            )

    def _check_grids(self) -> None:
        has_grid = any(is_grid(one) for value in self.space.values() for one in domains(value))
        name = self.search_name
        if name == "grid":
            for key, value in self.space.items():
                if any(not is_grid(one) for one in domains(value)):
                    raise SweepError(
                        f"search: grid visits only grids, but {key} is sampled. Write `{key}:"
                        " {grid: [...]}`, or use search: random.",
                        ("space", key),
                    )
        if has_grid and name not in ("random", "grid", "BasicVariantGenerator"):
            raise SweepError(
                f"search {name!r} cannot visit grids. Use choice"
                " instead of grid, or search: random.",
                ("search",),
            )

    def _check_resources(self) -> None:
        if not isinstance(self.resources, Mapping):
            raise SweepError(
                f"resources={self.resources!r}: give amounts by name, such as {{'CPU': 2}}.",
                ("resources",),
            )
        for name, amount in self.resources.items():
            path = ("resources", name)
            plain = str(name).lower().removesuffix("s")
            near = next(
                (one for one in RESOURCES if plain in (one.lower(), one.lower()[:-1])), None
            )
            if near is not None and near != name:
                raise SweepError(f"resources: {name!r}: did you mean {near!r}?", path)
            if name == "num_workers":
                _whole_number("resources: num_workers", amount, 1, *path)
            elif (
                isinstance(amount, bool) or not isinstance(amount, (int, float)) or not amount >= 0
            ):
                raise SweepError(
                    f"resources: {name} is {amount!r}: give an amount of at least 0 for each, such"
                    " as {'CPU': 2, 'GPU': 0.5}.",
                    path,
                )
            elif amount == float("inf"):
                raise SweepError(f"resources: {name} is infinite.", path)
        if self.num_workers and any(
            float(amount) != int(amount) for amount in self.resources.values()
        ):
            raise SweepError(
                "resources: with num_workers, the amounts of each worker are whole numbers.",
                ("resources",),
            )

    # ---- what follows from it ----

    @property
    def search_name(self) -> str:
        """The word for the search; of an object, its class."""
        if isinstance(self.search, (SearchAlgorithm, Searcher)):
            return type(self.search).__name__
        return named(self.search, "search")[0]

    @property
    def scheduler_name(self) -> str:
        """The word for the scheduler; of an object, its class."""
        if isinstance(self.scheduler, TrialScheduler):
            return type(self.scheduler).__name__
        return named(self.scheduler, "scheduler")[0]

    @property
    def num_workers(self) -> int:
        """Ray workers of each trial; 0: it runs in one process."""
        return int(self.resources.get("num_workers", 0))

    @property
    def trainer_settings(self) -> Arguments:
        """Arguments of each trial's Trainer: one process, or Ray workers that reserve resources."""
        own = {key: amount for key, amount in self.resources.items() if key != "num_workers"}
        settings: Arguments = {"num_workers": None, "devices": None, "num_nodes": 1}
        if self.num_workers:
            settings["num_workers"] = self.num_workers
            settings["resources_per_worker"] = own
            settings["use_gpu"] = own.get("GPU", 0) > 0
        return settings

    @property
    def swept(self) -> list[str]:
        """The keys of the space that differ between trials: all but constants."""
        return [key for key, value in self.space.items() if is_swept(value)]

    @property
    def num_trials(self) -> int:
        """How many trials the sweep runs: samples times the combinations of its grids."""
        return self.num_samples * combinations(dict(self.space))

    def make_search(
        self,
        points: Sequence[Mapping[str, object]] | None = None,
        earlier: Sequence[tuple[Mapping[str, object], Sequence[float]]] = (),
        is_limited: bool = True,
        begun: int = 0,
    ) -> SearchAlgorithm | Searcher:
        """Return Ray Tune's object for `search`; see `search.make_search`.

        Raises:
            SweepError: there is no such search, or it does not take its arguments.
            MissingPackageError: it needs a package that is not installed.
        """
        points = self.points if points is None else points
        return make_search(self, points, earlier, is_limited, begun)

    def make_scheduler(self, max_epochs: int | None = None) -> TrialScheduler:
        """Return Ray Tune's object for `scheduler`; `max_epochs` is how long a trial can become.

        Raises:
            SweepError: there is no such scheduler, or it does not take these arguments.
        """
        return schedule.make_scheduler(self, max_epochs)

    def make_stopper(self) -> stops.Stops:
        """Return the stoppers of trials and of the sweep that `stop` asks for.

        Raises:
            SweepError: a word or a value is wrong.
        """
        return stops.make_stopper(self)


MOST = 2**63 - 1  # what Optuna, Ray and files count to


def _whole_number(what: str, value: object, least: int, *path: str | int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SweepError(
            f"{what}={value!r}: give a whole number of at least {least}.", path or (what,)
        )
    if value > MOST:
        raise SweepError(f"{what} is larger than {MOST:,}.", path or (what,))
