"""When a trial ends, and when the whole sweep does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from ray.tune.stopper import (
    ExperimentPlateauStopper,
    MaximumIterationStopper,
    Stopper,
    TimeoutStopper,
    TrialPlateauStopper,
)

from raylit.errors import did_you_mean
from raylit.runtime.messages import warn_once
from raylit.tune.direction import direction_of
from raylit.tune.space import SweepError

if TYPE_CHECKING:
    from raylit.tune.aliases import Report
    from raylit.tune.spec import SweepSpec

UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
WORDS = ("time_budget", "time_budget_s", "target", "plateau", "trial_plateau", "reports")
# Ray Tune's class for a word, and its arguments as an example
PLATEAUS: dict[str, tuple[Callable[..., Stopper], str]] = {
    "plateau": (ExperimentPlateauStopper, "{std: 0.001, top: 10, patience: 3}"),
    "trial_plateau": (TrialPlateauStopper, "{std: 0.01, num_results: 4}"),
}
DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|d)\s*")


class Threshold(Stopper):
    """Ends a trial, or the sweep, once a metric has reached a value."""

    def __init__(self, metric: str, mode: str, value: float, ends_sweep: bool) -> None:
        self.metric = metric
        self._mode = mode
        self._value = value
        self._ends_sweep = ends_sweep
        self._reached = False

    def __call__(self, trial_id: str, result: Report) -> bool:
        value = result.get(self.metric)
        if value is None:
            return False
        there = bool(value <= self._value if self._mode == "min" else value >= self._value)
        self._reached = self._reached or there
        return there

    def stop_all(self) -> bool:
        return self._ends_sweep and self._reached


class Asked(Protocol):
    """Who knows whether a signal has come, and tells the trials that the sweep ends."""

    signal: int | None

    def tell(self) -> None:
        """Have the trials that run saved and ended."""


class Stops(Stopper):
    """Ends trials and the sweep by the words under `stop`, and remembers which of them it was.

    Args:
        by_word: Ray Tune's object for each word.

    Attributes:
        reasons: of the trials that one of them ended, by Ray Tune's ids.
        ended_by: the word that ended the sweep, or None.
    """

    def __init__(self, by_word: Mapping[str, Stopper]) -> None:
        self._by_word = by_word
        self.reasons: dict[str, str] = {}
        self.ended_by: str | None = None

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        if "how" in result:
            return False  # it has ended: a report repeated, or none at all, without the metric
        self._tell_missing(result)
        # each of them counts what it sees
        words = [word for word, one in self._by_word.items() if one(trial_id, result)]
        if words:
            self.reasons[trial_id] = words[0]
        return bool(words)

    def _tell_missing(self, result: Mapping[str, object]) -> None:
        """Warn once of a metric that trials do not log, which would never end one."""
        logged = result.get("logged")
        for word, one in self._by_word.items():
            if isinstance(one, Threshold) and isinstance(logged, list) and one.metric not in logged:
                warn_once(
                    f"stop: {word}: trials log no {one.metric!r}, so that it ends none. They log"
                    f" {', '.join(map(str, logged))}."
                )

    def stop_all(self) -> bool:
        words = [word for word, one in self._by_word.items() if one.stop_all()]
        if words and self.ended_by is None:
            self.ended_by = words[0]
        return bool(words)


class EndOfSweep(Stopper):
    """Ends the sweep when its stopper says so or a signal has come, with the trials that run.

    Ray Tune alone would wait for each trial's next report.
    """

    def __init__(self, stops: Stops, ending: Asked) -> None:
        self._stops = stops
        self._ending = ending

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return self._stops(trial_id, result)

    def stop_all(self) -> bool:
        if self._ending.signal is not None:
            return True
        ends = self._stops.stop_all()
        if ends:
            self._ending.tell()
        return ends


def make_stopper(spec: SweepSpec) -> Stops:
    """Return the stoppers of trials and of the sweep.

    Raises:
        SweepError: a word or a value is wrong.
    """
    stop = spec.stop
    if isinstance(stop, Stopper):
        return Stops({"stop": stop})
    if not isinstance(stop, Mapping):
        raise SweepError(
            f"stop: {stop!r}: give a mapping, such as {{val_acc: 0.99, time_budget: 1h}}.",
            ("stop",),
        )
    made: dict[str, Stopper] = {}
    for word, value in stop.items():
        path = ("stop", word)
        if word in ("time_budget", "time_budget_s"):
            made[word] = TimeoutStopper(seconds(value, path))
        elif word == "target":
            made[word] = Threshold(spec.metric, spec.mode, _number(word, value), True)
        elif word in PLATEAUS:
            if value is not None and value is not False:
                made[word] = _plateau(spec, word, value)
        elif word in ("reports", "training_iteration"):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise SweepError(f"stop: {word} is {value!r}: give a whole number.", path)
            made[word] = MaximumIterationStopper(value)
        else:
            near = did_you_mean(str(word), WORDS)
            if near and word not in spec.metrics:
                raise SweepError(f"stop has no word {word!r}.{near}", path)
            mode = spec.metrics.get(word) or direction_of(str(word))
            if mode is None:
                raise SweepError(
                    f"stop: {word}: the name does not tell whether a trial ends above or below"
                    f" {value!r}. Make it one of the sweep's metrics: metric: [..., {{name:"
                    f" {word}, mode: max}}].",
                    path,
                )
            made[word] = Threshold(word, mode, _number(word, value), False)
    return Stops(made)


def seconds(value: object, path: tuple[str, ...] = ()) -> float:
    """Return a time in seconds: a number, or text such as `90s`, `1h`, `1h30m`.

    Raises:
        SweepError: it is no time, or not greater than 0.
    """
    total: float | None = None
    if isinstance(value, str):
        parts = list(DURATION.finditer(value))
        if parts and "".join(part.group(0) for part in parts) == value:
            total = sum(float(part[1]) * UNITS[part[2]] for part in parts)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        total = float(value)
    if total is None or not 0 < total < float("inf"):
        where = ": ".join(path) or "time"
        raise SweepError(
            f"{where} is {value!r}: give seconds, or a time with units, such as 90s, 10m, 1h or"
            " 1h30m.",
            path,
        )
    return total


def budget_s(spec: SweepSpec) -> float | None:
    """Return how many seconds the sweep has, or None."""
    if not isinstance(spec.stop, Mapping):
        return None
    given = spec.stop.get("time_budget", spec.stop.get("time_budget_s"))
    return None if given is None else seconds(given)


def _number(word: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise SweepError(f"stop: {word} is {value!r}: give a number.", ("stop", word))
    return float(value)


def _plateau(spec: SweepSpec, word: str, value: object) -> Stopper:
    cls, example = PLATEAUS[word]
    if value is not True and not isinstance(value, Mapping):
        raise SweepError(
            f"stop: {word} is {value!r}: give true, false, or a mapping of its arguments, such as"
            f" {example}.",
            ("stop", word),
        )
    given = dict(value) if isinstance(value, Mapping) else {}
    known = [key for key in inspect.signature(cls).parameters if key != "self"]
    for key in given:
        if key not in known:
            raise SweepError(
                f"stop: {word} has no argument {key!r}.{did_you_mean(str(key), known)} It has:"
                f" {', '.join(known)}.",
                ("stop", word, key),
            )
    try:
        return cls(**{"metric": spec.metric, "mode": spec.mode, **given})
    except (TypeError, ValueError, AssertionError) as error:
        raise SweepError(f"stop: {word} does not take {given}: {error}.", ("stop", word)) from error
