"""From the word for a search to Ray Tune's object, and a searcher around a study of Optuna.

Random search and grids, HyperOpt, BOHB and Bayesian optimization are Ray Tune's classes, the
samplers are Optuna's. `OptunaSearcher` only asks a study and tells it: Ray's own takes neither
conditional spaces together with earlier results nor points that are told again when a sweep goes
on.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from ray.tune.search import BasicVariantGenerator, SearchAlgorithm, Searcher
from ray.tune.search.sample import Categorical, Domain, Function, Normal, Quantized

from raylit.errors import MissingPackageError, did_you_mean
from raylit.runtime.aliases import Arguments
from raylit.runtime.messages import info
from raylit.tune.aliases import Report, Value, Values
from raylit.tune.space import SweepError, is_grid, nearest_option, options_of

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

    from raylit.tune.spec import SweepSpec

SAMPLERS = {
    "tpe": "TPESampler",
    "cmaes": "CmaEsSampler",
    "nsga2": "NSGAIISampler",
    "nsga3": "NSGAIIISampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
}
# Word: module and class of Ray Tune, what it calls its seed, the package it needs, and what to
# install.
PACKAGES = {
    "hyperopt": ("hyperopt", "HyperOptSearch", "random_state_seed", "hyperopt", "hyperopt"),
    # Ray 2.60 uses UtilityFunction, which later ones do not have
    "bayesopt": (
        "bayesopt",
        "BayesOptSearch",
        "random_state",
        "bayes_opt",
        "bayesian-optimization==1.4.3",
    ),
    "bohb": ("bohb", "TuneBOHB", "seed", "hpbandster", "hpbandster ConfigSpace"),
}
SEARCHES = ("random", "grid", "optuna", *SAMPLERS, *PACKAGES)
T = TypeVar("T")
SCALARS = (str, int, float, bool, type(None))


def make_search(
    spec: SweepSpec,
    points: Sequence[Mapping[str, object]] = (),
    earlier: Sequence[tuple[Mapping[str, object], Sequence[float]]] = (),
    is_limited: bool = True,
    begun: int = 0,
) -> SearchAlgorithm | Searcher:
    """Return Ray Tune's object for the search of a sweep.

    Args:
        spec: the sweep's.
        points: what to try first, in this order.
        earlier: values tried in another sweep, each with its metrics.
        is_limited: whether it makes no more trials than run at a time.
        begun: how many of the points are trials of this sweep, which goes on.

    Raises:
        SweepError: there is no such search, or it does not take its arguments or the space.
        MissingPackageError: it needs a package that is not installed.
    """
    if isinstance(spec.search, (SearchAlgorithm, Searcher)):
        own: SearchAlgorithm | Searcher = spec.search
        return own
    name, arguments = named(spec.search, "search")
    if name in ("random", "grid"):
        variants: SearchAlgorithm = _made(
            name,
            BasicVariantGenerator,
            {
                "random_state": spec.seed,
                "points_to_evaluate": [dict(point) for point in points] or None,
                "max_concurrent": (spec.max_concurrent or 0) if is_limited else 0,
                **arguments,
            },
        )
        return variants
    # random search draws the same again, and trials of before are not run again
    known = begun + len(earlier)
    key = PACKAGES[name][2] if name in PACKAGES else "seed"
    arguments[key] = seed_after(arguments.get(key, spec.seed), known)
    if name in PACKAGES:
        return _ray_search(name, spec, points, arguments)
    if name == "optuna" or name in SAMPLERS:
        chosen = arguments.pop("sampler", None) or (name if name in SAMPLERS else None)
        if str(chosen).lower() == "qmc" and known:
            arguments = {"scramble": True, **arguments}  # else its sequence has no seed
        sampler = make_sampler(spec, chosen, arguments)
        return OptunaSearcher(spec.space, spec.metrics, sampler, points, earlier)
    raise SweepError(
        f"search: {name!r} is not known.{did_you_mean(name, SEARCHES)} Use one of"
        f" {', '.join(SEARCHES)}, or an object of ray.tune.search.",
        ("search",),
    )


def seed_after(seed: object, number: int) -> object:
    """Return the seed of a search that knows of trials which it has not drawn itself.

    Its own seed would have it draw first the values that those have tried. A seed that is no number
    stays.
    """
    if not isinstance(seed, int) or number == 0:
        return seed
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def _ray_search(
    name: str, spec: SweepSpec, points: Sequence[Mapping[str, object]], arguments: Arguments
) -> Searcher:
    module, cls, _, package, install = PACKAGES[name]
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingPackageError(install, f"search: {name}") from error
    if len(spec.metrics) > 1:
        raise SweepError(
            f"search: {name} takes one metric, but there are {len(spec.metrics)}. Use search:"
            " optuna.",
            ("search",),
        )
    found = getattr(importlib.import_module(f"ray.tune.search.{module}"), cls)
    given = {"points_to_evaluate": [dict(one) for one in points] or None}
    searcher: Searcher = _made(name, found, given | arguments)
    return searcher


def _made(name: str, cls: Callable[..., T], arguments: Arguments) -> T:
    try:
        return cls(**arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise SweepError(
            f"search: {name} does not take its arguments: {error}.", ("search",)
        ) from (error)


def named(value: object, what: str) -> tuple[str, Arguments]:
    """Return (name, arguments) of a name or a mapping with a name.

    Raises:
        SweepError: it is neither.
    """
    if value is None:
        return "none", {}
    if isinstance(value, str):
        return value.lower(), {}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        arguments = {key: argument for key, argument in value.items() if key != "name"}
        return value["name"].lower(), arguments
    raise SweepError(
        f"{what}: {value!r} is neither a name nor a mapping with the key `name`.", (what,)
    )


def make_sampler(spec: SweepSpec, chosen: object, arguments: dict[str, object]) -> BaseSampler:
    """Return Optuna's sampler: the one named, TPE for one metric, NSGA-II for several.

    Raises:
        SweepError: there is no such sampler, or it does not take its arguments.
        MissingPackageError: it needs a package that is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError("optuna", "search: optuna", extra="tune") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if isinstance(chosen, optuna.samplers.BaseSampler):
        return chosen
    name = str(chosen or ("nsga2" if len(spec.metrics) > 1 else "tpe")).lower()
    if name not in SAMPLERS:
        raise SweepError(
            f"search: optuna has no sampler {name!r}.{did_you_mean(name, SAMPLERS)} Use one of"
            f" {', '.join(SAMPLERS)}.",
            ("search", "sampler"),
        )
    if name == "cmaes" and len(spec.metrics) > 1:
        raise SweepError(
            "search: CMA-ES takes one metric. Use nsga2 for several.", ("search", "sampler")
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler: BaseSampler = getattr(optuna.samplers, SAMPLERS[name])(**arguments)
            if name == "cmaes":
                importlib.import_module("cmaes")
    except ImportError as error:
        raise MissingPackageError("cmaes", f"search: {name}", extra="tune") from error
    except (TypeError, ValueError) as error:
        raise SweepError(
            f"search: {name} does not take {arguments}: {error}.", ("search",)
        ) from error
    return sampler


class OptunaSearcher(Searcher):
    """Asks a study of Optuna for the values of each trial, and tells it how they did.

    A choice among mappings is a parameter of its own, those of the mapping that is chosen are
    asked for after it (define by run).

    Args:
        space: names to values, as `read_space` gives them.
        metrics: names to `min` or `max`.
        sampler: Optuna's.
        points: what to try first.
        earlier: values tried in another sweep, each with its metrics.

    Raises:
        SweepError: Optuna cannot sample something in the space.
    """

    def __init__(
        self,
        space: Mapping[str, object],
        metrics: Mapping[str, str],
        sampler: BaseSampler,
        points: Sequence[Mapping[str, object]] = (),
        earlier: Sequence[tuple[Mapping[str, object], Sequence[float]]] = (),
    ) -> None:
        import optuna

        # of several metrics, lists
        several: Arguments = {"metric": list(metrics), "mode": list(metrics.values())}
        super().__init__(**several)
        self._space = space
        self._names = list(metrics)
        _check(space)
        self._study = optuna.create_study(
            directions=["minimize" if mode == "min" else "maximize" for mode in metrics.values()],
            sampler=sampler,
            pruner=optuna.pruners.NopPruner(),
        )
        self._trials: dict[str, Trial] = {}
        logging.getLogger("optuna").setLevel(logging.WARNING)
        self._learn(earlier)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is experimental
            for point in points:
                self._study.enqueue_trial({name: value for name, (value, _) in self._encode(point)})

    def _learn(self, earlier: Sequence[tuple[Mapping[str, object], Sequence[float]]]) -> None:
        import optuna

        taken = 0
        for config, values in earlier:
            found: FrozenTrial
            try:
                encoded = dict(self._encode(config))
                found = optuna.trial.create_trial(
                    params={name: value for name, (value, _) in encoded.items()},
                    distributions={name: where for name, (_, where) in encoded.items()},
                    values=list(values),
                )
            except (KeyError, TypeError, ValueError):
                continue  # outside of this space
            self._study.add_trial(found)
            taken += 1
        if earlier:
            info(f"warm_start: {taken} of {len(earlier)} earlier trials lie in the space.")

    # ---- what Ray Tune calls ----

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, object], **spec: object
    ) -> bool:
        return True  # all of it is known

    def suggest(self, trial_id: str) -> Values:
        trial = self._study.ask()
        self._trials[trial_id] = trial
        return {name: self._draw(trial, name, value) for name, value in self._space.items()}

    def on_trial_complete(
        self, trial_id: str, result: Report | None = None, error: bool = False
    ) -> None:
        import optuna

        trial = self._trials.pop(trial_id, None)
        if trial is None:
            return
        values = [(result or {}).get(name) for name in self._names]
        if error or any(value is None or not math.isfinite(value) for value in values):
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(trial, [float(value) for value in values if value is not None])

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from its own record."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from its own record."""

    # ---- values and parameters ----

    def _draw(self, trial: Trial, name: str, value: object) -> Value:
        """Return a value of the space with the study's suggestions in place of domains."""
        if isinstance(value, Categorical):
            options = options_of(value)
            if all(isinstance(option, SCALARS) for option in options):
                return trial.suggest_categorical(name, options)
            chosen = trial.suggest_categorical(name, list(range(len(options))))
            return self._draw(trial, f"{name}[{chosen}]", options[chosen])
        if isinstance(value, Domain):
            from optuna.distributions import FloatDistribution

            where = distribution(value)
            if isinstance(where, FloatDistribution):
                return trial.suggest_float(
                    name, where.low, where.high, step=where.step, log=where.log
                )
            return trial.suggest_int(name, where.low, where.high, step=where.step, log=where.log)
        if isinstance(value, Mapping):
            return {key: self._draw(trial, f"{name}.{key}", one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._draw(trial, f"{name}.{key}", one) for key, one in enumerate(value)]
        return value

    def _encode(
        self, config: Mapping[str, Value]
    ) -> list[tuple[str, tuple[Value, BaseDistribution]]]:
        """Return the parameters, with distributions, by which the study would suggest values."""
        found: list[tuple[str, tuple[Value, BaseDistribution]]] = []

        def visit(name: str, value: object, given: Value) -> None:
            import optuna

            if isinstance(value, Categorical):
                options = options_of(value)
                if all(isinstance(option, SCALARS) for option in options):
                    where = optuna.distributions.CategoricalDistribution(options)
                    found.append((name, (given, where)))
                    return
                chosen = nearest_option(given, options)
                if chosen is None:
                    raise ValueError(f"{name}: {given!r} is none of {options}")
                where = optuna.distributions.CategoricalDistribution(list(range(len(options))))
                found.append((name, (chosen, where)))
                visit(f"{name}[{chosen}]", options[chosen], given)
            elif isinstance(value, Domain):
                found.append((name, (given, distribution(value))))
            elif isinstance(value, Mapping):
                for key, one in value.items():
                    if isinstance(given, Mapping) and key in given:
                        visit(f"{name}.{key}", one, given[key])
            elif isinstance(value, list):
                for key, one in enumerate(value):
                    visit(f"{name}.{key}", one, given[key])

        for name, value in self._space.items():
            if name in config:
                visit(name, value, config[name])
        return found


def distribution(value: Domain) -> FloatDistribution | IntDistribution:
    """Return Optuna's distribution of a range of Ray Tune, as Ray Tune itself translates it."""
    from ray.tune.search.optuna import OptunaSearch

    logging.getLogger("ray.tune.search.optuna.optuna_search").setLevel(logging.ERROR)
    found: FloatDistribution | IntDistribution
    found = OptunaSearch.convert_search_space({"value": value})["value"]
    return found


def _check(value: object, name: str = "") -> None:
    """Refuse values that Optuna cannot sample.

    Raises:
        SweepError: there is such a thing.
    """
    if is_grid(value):
        raise SweepError(
            f"{name}: search: optuna cannot visit grids. Use choice instead of grid, or search:"
            " random.",
            ("space", name),
        )
    if isinstance(value, Function):
        raise SweepError(
            f"{name}: search: optuna cannot sample by a function. Use search: random.",
            ("space", name),
        )
    if isinstance(value, Categorical):
        for option in options_of(value):
            _check(option, name)
    elif isinstance(value, Domain):
        sampler = value.get_sampler()
        inner = sampler.sampler if isinstance(sampler, Quantized) else sampler
        if isinstance(inner, Normal):
            raise SweepError(
                f"{name}: search: optuna has no normal distribution. Use uniform or loguniform, or"
                " search: random.",
                ("space", name),
            )
    elif isinstance(value, Mapping):
        for key, one in value.items():
            _check(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for one in value:
            _check(one, name)
