"""From the word for a scheduler to Ray Tune's object."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.sample import Categorical, Domain, Float, Integer

from raylit.errors import MissingPackageError, did_you_mean
from raylit.runtime.aliases import Arguments
from raylit.tune.aliases import Values
from raylit.tune.search import named
from raylit.tune.space import SweepError, domain, nearest

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

    from raylit.tune.spec import SweepSpec


class WaitsForTheLiving(PopulationBasedTraining):
    """Population-based training whose trials do not wait for one that is gone.

    With `synch=True`, all wait until the last has reported. Ray 2.60 has them wait for ever if that
    one fails or ends before, or if one of them has reported more than once in a round.
    """

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """Return the trial that is to run next, if one waits and none else is awaited."""
        chosen: Trial | None = super().choose_trial_to_run(tune_controller)
        if chosen is not None or not self._synch:
            return chosen
        living = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
        if not living or any(trial.status != Trial.PAUSED for trial in living):
            return None
        newest = max(self._trial_state[trial].last_train_time for trial in living)
        self._next_perturbation_sync = newest + self._perturbation_interval
        found: Trial | None = super().choose_trial_to_run(tune_controller)
        return found


SCHEDULERS: dict[str, Callable[..., TrialScheduler]] = {
    "asha": ASHAScheduler,
    "hyperband": HyperBandScheduler,
    "bohb": HyperBandForBOHB,
    "median": MedianStoppingRule,
    "pbt": WaitsForTheLiving,
    "fifo": FIFOScheduler,
    "none": FIFOScheduler,
}
NAMES = (*SCHEDULERS, "pb2")
WITH_MAX_T = ("asha", "hyperband", "bohb")
# Reports between two looks at the population, unless said: a fit of few epochs has several of them.
PERTURB_EVERY = 4
LOOKS = 5


def make_scheduler(spec: SweepSpec, max_epochs: int | None) -> TrialScheduler:
    """Return Ray Tune's object for the scheduler of a sweep.

    Time is counted in reports, of which there is one for each validation or epoch.

    Raises:
        SweepError: there is no such scheduler, or it does not take its arguments.
        MissingPackageError: it needs a package that is not installed.
    """
    if isinstance(spec.scheduler, TrialScheduler):
        return spec.scheduler
    given = spec.scheduler
    name, arguments = named(given, "scheduler")
    if name not in NAMES:
        raise SweepError(
            f"scheduler: {name!r} is not known.{did_you_mean(name, NAMES)} Use one of"
            f" {', '.join(NAMES)}, or an object of ray.tune.schedulers.",
            ("scheduler",),
        )
    cls = _pb2() if name == "pb2" else SCHEDULERS[name]
    if spec_is_bohb(spec) and name not in ("bohb", "none", "fifo"):
        raise SweepError(
            "search: bohb goes with scheduler: bohb, which tells it the budgets.", ("scheduler",)
        )
    known = [key for key in inspect.signature(cls.__init__).parameters if key != "self"]
    for key in arguments:
        if key not in known:
            raise SweepError(
                f"scheduler: {name} does not take {key!r}.{did_you_mean(key, known)} It takes:"
                f" {', '.join(known) or 'nothing'}.",
                ("scheduler", key),
            )
    defaults: Arguments = {}
    if "time_attr" in known:
        defaults["time_attr"] = "training_iteration"
    if name in WITH_MAX_T and max_epochs is not None and max_epochs > 0:
        defaults["max_t"] = max(max_epochs, int(arguments.get("grace_period", 1)))
    if name in ("pbt", "pb2"):
        every = PERTURB_EVERY
        if max_epochs is not None and max_epochs > 0:
            every = min(max(max_epochs // LOOKS, 1), every)
        defaults["perturbation_interval"] = every
        arguments = arguments | _population(spec, name, arguments)
    try:
        scheduler: TrialScheduler = cls(**defaults | arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise SweepError(
            f"scheduler: {name} does not take {arguments}: {error}.", ("scheduler",)
        ) from error
    return scheduler


def _pb2() -> Callable[..., TrialScheduler]:
    """Return the class PB2.

    Its module imports scikit-learn, half a second that no other sweep or trial is to wait for.
    """
    from ray.tune.schedulers.pb2 import PB2, has_sklearn

    if not has_sklearn:
        raise MissingPackageError("scikit-learn", "scheduler: pb2")

    class LivingPB2(WaitsForTheLiving, PB2):
        pass

    return LivingPB2


def check_together(search: SearchAlgorithm | Searcher, scheduler: TrialScheduler) -> None:
    """Check that a scheduler goes with a search, which Ray Tune does when the first trial runs.

    Raises:
        SweepError: it does not.
    """
    made = type(scheduler).__mro__
    name = next(cls.__name__ for cls in made if not cls.__module__.startswith("raylit"))
    if isinstance(scheduler, PopulationBasedTraining) and not isinstance(
        search, BasicVariantGenerator
    ):
        raise SweepError(
            f"scheduler: {name} draws the values of its trials itself, while they run, so no search"
            " can propose them. Use search: random with it, or another scheduler such as asha.",
            ("scheduler",),
        )
    pauses = search.searcher if isinstance(search, ConcurrencyLimiter) else search
    if isinstance(scheduler, HyperBandForBOHB) and not hasattr(pauses, "on_pause"):
        raise SweepError(
            f"scheduler: {name} tells the search of each trial that it pauses, which only BOHB"
            " takes. Use search: bohb with it, or scheduler: hyperband.",
            ("scheduler",),
        )


def spec_is_bohb(spec: SweepSpec) -> bool:
    """Tell whether the search is BOHB."""
    return isinstance(spec.search, (str, dict)) and named(spec.search, "search")[0] == "bohb"


def _population(spec: SweepSpec, name: str, arguments: Arguments) -> Arguments:
    """Return the keys a population-based scheduler changes: all sampled ones, unless it says."""
    argument = "hyperparam_mutations" if name == "pbt" else "hyperparam_bounds"
    given = arguments.get(argument)
    if given is not None:
        for key in given:
            if key not in spec.space:
                raise SweepError(
                    f"scheduler: {argument} names {key!r}, which is no key of the"
                    f" space.{did_you_mean(str(key), spec.space)}",
                    ("scheduler", argument, key),
                )
        if name != "pbt":
            return {argument: given}
        # In the words of a space: Ray takes a mapping for a nested config.
        drawn = {key: _drawn(key, value) for key, value in given.items()}
        within = {
            key: one if isinstance(one, Domain) else spec.space[key] for key, one in drawn.items()
        }
        return {argument: drawn, **_explores(within, arguments)}
    sampled = {key: value for key, value in spec.space.items() if isinstance(value, Domain)}
    fits = Domain if name == "pbt" else (Float, Integer)
    if not any(isinstance(value, fits) for value in sampled.values()):
        what = "nothing that is sampled" if name == "pbt" else "no range of numbers"
        raise SweepError(
            f"scheduler: {name} changes values while trials run, but the space has {what} at its"
            " top. Sample a key, such as {loguniform: [0.0001, 0.1]}, or use scheduler: asha.",
            ("scheduler",),
        )
    if name == "pbt":
        plain = {
            key: list(value.categories) if isinstance(value, Categorical) else value
            for key, value in sampled.items()
        }
        return {argument: plain, **_explores(sampled, arguments)}
    bounds = {
        key: [value.lower, nearest(value.upper, value)]
        for key, value in sampled.items()
        if isinstance(value, (Float, Integer))
    }
    return {argument: bounds}


def _explores(space: Mapping[str, object], arguments: Arguments) -> Arguments:
    return {"custom_explore_fn": StaysWithin(space, arguments.get("custom_explore_fn"))}


class StaysWithin:
    """Takes the values that PBT has made back into their ranges.

    Ray multiplies them by 1.2 or 0.8, and a dropout of 0.9 becomes one of 1.08.

    Args:
        space: keys to their dimensions.
        then: what the user wants to be done after it, or None.
    """

    def __init__(
        self, space: Mapping[str, object], then: Callable[[Values], object] | None
    ) -> None:
        self.space = space
        self.then = then

    def __call__(self, config: Values) -> object:
        """Return a trial's next values."""
        for key, where in self.space.items():
            if key in config:
                config[key] = nearest(config[key], where)
        return config if self.then is None else self.then(config)


def _drawn(key: str, value: object) -> object:
    """Return `{"uniform": [0, 1]}` as Ray's object; lists, functions and objects as they are."""
    if not isinstance(value, dict) or len(value) != 1:
        return value
    ((word, arguments),) = value.items()
    return domain(key, word, arguments)
