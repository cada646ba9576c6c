"""Pictures of a sweep, in plain matplotlib; the importance of keys is computed by Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from raylit.core.shown import new_figure
from raylit.errors import ConfigError, MissingPackageError, did_you_mean
from raylit.tune.aliases import Value
from raylit.tune.display import short
from raylit.tune.result import SweepResult, TrialResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution

MIN_FOR_IMPORTANCE = 4  # trials
MAX_FOR_IMPORTANCE = 1000  # of more, so many of all scores: fANOVA takes seconds


def draw(result: SweepResult, kind: str) -> Figure:
    """Return a picture of a sweep.

    Raises:
        ConfigError: there is no such kind, or the trials do not suffice for it.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"plot({kind!r}): there is no such kind.{did_you_mean(kind, KINDS)} There are:"
            f" {', '.join(KINDS)}."
        )
    return KINDS[kind](result)


def kinds_for(result: SweepResult) -> list[str]:
    """Return the kinds of pictures that say something of a sweep."""
    keys = _keys(result)
    kinds = ["history"]
    if keys:
        kinds += ["slices"]
    if len(keys) > 1:
        kinds += ["parallel"]
        if len(_scored(result)) >= MIN_FOR_IMPORTANCE:
            kinds += ["contour", "importance"]
    if len(result.spec.metrics) > 1:
        kinds += ["front"]
    return kinds


def compute_importance(result: SweepResult) -> dict[str, float]:
    """Return how much of the score's variance each swept key explains (fANOVA, Hutter et al. 2014).

    Empty if too few trials have a score, or all have the same.
    """
    try:
        import optuna
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "optuna scikit-learn", "the importance of keys", extra="tune"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    keys = _keys(result)
    trials = _scored(result)
    trials = trials[:: math.ceil(len(trials) / MAX_FOR_IMPORTANCE) or 1]
    # only keys that all trials have can be compared
    keys = [key for key in keys if all(key in trial.config for trial in trials)]
    if len(trials) < MIN_FOR_IMPORTANCE or not keys or len({one.score for one in trials}) == 1:
        return {}
    study = optuna.create_study(direction="minimize" if result.spec.mode == "min" else "maximize")
    distributions: dict[str, BaseDistribution] = {}
    for key in keys:
        values = [trial.config[key] for trial in trials]
        if all(_is_number(value) for value in values):
            low, high = float(min(values)), float(max(values))
            distributions[key] = optuna.distributions.FloatDistribution(
                low, high, log=_is_log(values)
            )
        else:
            names = sorted({str(value) for value in values})
            distributions[key] = optuna.distributions.CategoricalDistribution(names)
    for trial in trials:
        params = {
            key: (
                float(trial.config[key])
                if isinstance(where, optuna.distributions.FloatDistribution)
                else str(trial.config[key])
            )
            for key, where in distributions.items()
        }
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=trial.score)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found: dict[str, float] = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return found


# ---- kinds ----


def _history(result: SweepResult) -> Figure:
    figure = new_figure(8, 4)
    axes = figure.subplots()
    trials = sorted(_scored(result), key=lambda trial: trial.number)
    numbers = [trial.number for trial in trials]
    scores = [float(trial.score or 0.0) for trial in trials]
    pick = min if result.spec.mode == "min" else max
    best = [pick(scores[: index + 1]) for index in range(len(scores))]
    axes.scatter(numbers, scores, s=18, label="trials")
    axes.step(numbers, best, where="post", color="tab:orange", label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(result.spec.metric)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _slices(result: SweepResult) -> Figure:
    keys = _keys(result) or sorted({key for trial in result.trials for key in trial.config})
    columns = min(3, max(1, len(keys)))
    rows = math.ceil(max(1, len(keys)) / columns)
    figure = new_figure(4 * columns, 3.2 * rows)
    panels = [axes for row in figure.subplots(rows, columns, squeeze=False) for axes in row]
    for axes, key in zip(panels, keys, strict=False):
        trials = [trial for trial in _scored(result) if key in trial.config]
        values = [trial.config[key] for trial in trials]
        scores = [trial.score for trial in trials]
        axes.scatter(_positions(axes, key, values, "x"), scores, s=18)
        axes.set_xlabel(key)
        axes.set_ylabel(result.spec.metric)
        axes.grid(alpha=0.3)
    for axes in panels[len(keys) :]:
        axes.remove()
    return figure


def _parallel(result: SweepResult) -> Figure:
    keys = _keys(result)
    trials = _scored(result)
    names = [*keys, result.spec.metric]
    figure = new_figure(max(6.0, 2.0 * len(names)), 4.5)
    axes = figure.subplots()
    columns: list[list[float]] = []
    for place, name in enumerate(names):
        values = [
            trial.score if name == result.spec.metric else _shown(trial, name) for trial in trials
        ]
        heights, low, high = _heights(values)
        columns.append(heights)
        axes.axvline(place, color="0.7", lw=0.8)
        axes.text(place, -0.04, low, ha="center", va="top", fontsize=8)
        axes.text(place, 1.02, high, ha="center", va="bottom", fontsize=8)
    scores = [float(trial.score or 0.0) for trial in trials]
    low_score, high_score = min(scores), max(scores)
    for index, score in enumerate(scores):
        share = (score - low_score) / (high_score - low_score) if high_score > low_score else 0.0
        good = 1 - share if result.spec.mode == "min" else share
        color = _colors()(good)
        axes.plot(range(len(names)), [column[index] for column in columns], color=color, alpha=0.7)
    axes.set_xticks(range(len(names)), names, rotation=15, ha="right")
    axes.tick_params(axis="x", pad=14)
    axes.set_yticks([])
    axes.set_ylim(-0.02, 1.02)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _importance(result: SweepResult) -> Figure:
    found = result.importance
    figure = new_figure(7, 1.2 + 0.4 * max(1, len(found)))
    axes = figure.subplots()
    items = sorted(found.items(), key=lambda item: item[1])
    axes.barh([key for key, _ in items], [share for _, share in items])
    axes.set_xlabel(f"share of the variance of {result.spec.metric}")
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.3, axis="x")
    return figure


def _contour(result: SweepResult) -> Figure:
    trials = _scored(result)
    ranked = list(result.importance) if len(trials) >= MIN_FOR_IMPORTANCE else []
    keys = [*ranked, *(key for key in _keys(result) if key not in ranked)]
    if len(keys) < 2:
        raise ConfigError("plot('contour') needs two swept keys.")
    x_key, y_key = keys[:2]
    trials = [trial for trial in trials if x_key in trial.config and y_key in trial.config]
    figure = new_figure(6.5, 5)
    axes = figure.subplots()
    x = _positions(axes, x_key, [trial.config[x_key] for trial in trials], "x")
    y = _positions(axes, y_key, [trial.config[y_key] for trial in trials], "y")
    scores = [float(trial.score or 0.0) for trial in trials]
    numeric = all(_is_number(value) for value in (*x, *y))
    if numeric and len(set(zip(x, y, strict=True))) > 3 and len(set(x)) > 1 and len(set(y)) > 1:
        try:
            filled = axes.tricontourf(x, y, scores, levels=12, cmap="viridis", alpha=0.85)
            figure.colorbar(filled, ax=axes, label=result.spec.metric)
        except (RuntimeError, ValueError):
            numeric = False  # all points on one line
    points = axes.scatter(x, y, c=scores, cmap="viridis", edgecolors="white", s=30)
    if not numeric:
        figure.colorbar(points, ax=axes, label=result.spec.metric)
    axes.set_xlabel(x_key)
    axes.set_ylabel(y_key)
    return figure


def _front(result: SweepResult) -> Figure:
    if len(result.spec.metrics) < 2:
        raise ConfigError("plot('front') needs a sweep of several metrics.")
    first, second = list(result.spec.metrics)[:2]
    figure = new_figure(6, 4.5)
    axes = figure.subplots()
    trials = [one for one in result.trials if first in one.metrics and second in one.metrics]
    axes.scatter(
        [one.metrics[first] for one in trials],
        [one.metrics[second] for one in trials],
        s=18,
        color="0.6",
        label="trials",
    )
    front = sorted(result.front, key=lambda one: one.metrics[first])
    axes.plot(
        [one.metrics[first] for one in front],
        [one.metrics[second] for one in front],
        "o-",
        color="tab:orange",
        label="Pareto front",
    )
    axes.set_xlabel(f"{first} ({result.spec.metrics[first]})")
    axes.set_ylabel(f"{second} ({result.spec.metrics[second]})")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


KINDS: dict[str, Callable[[SweepResult], Figure]] = {
    "history": _history,
    "slices": _slices,
    "parallel": _parallel,
    "importance": _importance,
    "contour": _contour,
    "front": _front,
}


# ---- values and places ----


def _colors() -> Colormap:
    import matplotlib

    return matplotlib.colormaps["viridis"]


def _scored(result: SweepResult) -> list[TrialResult]:
    return [
        trial for trial in result.trials if trial.score is not None and math.isfinite(trial.score)
    ]


def _keys(result: SweepResult) -> list[str]:
    """Return the full names of values that differ between trials."""
    found: dict[str, set[str]] = {}
    for trial in result.trials:
        for key, value in trial.config.items():
            found.setdefault(key, set()).add(repr(value))
    return sorted(key for key, values in found.items() if len(values) > 1)


def _shown(trial: TrialResult, key: str) -> object:
    """Return a value of a trial; one that is None is a choice, unlike one that is missing."""
    value = trial.config.get(key)
    return "none" if value is None and key in trial.config else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_log(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) > 50


def _positions(axes: Axes, key: str, values: list[Value], axis: str) -> list[Value]:
    """Return where values stand on an axis, whose scale is set for them."""
    if values and all(_is_number(value) for value in values):
        if _is_log(values):
            (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
        return values
    return [short(value) for value in values]


def _heights(values: list[Value]) -> tuple[list[float], str, str]:
    """Return heights from 0 to 1 of the values of one axis, and the texts at its ends."""
    nan = float("nan")
    numbers = [value for value in values if value is not None]
    if numbers and all(_is_number(value) for value in numbers):
        scale: Callable[[float], float] = math.log if _is_log(numbers) else float
        low, high = scale(min(numbers)), scale(max(numbers))
        span = (high - low) or 1.0
        heights = [nan if value is None else (scale(value) - low) / span for value in values]
        return heights, short(float(min(numbers))), short(float(max(numbers)))
    names = sorted({str(value) for value in numbers})
    span = max(1, len(names) - 1)
    heights = [nan if value is None else names.index(str(value)) / span for value in values]
    return heights, short(names[0]) if names else "", short(names[-1]) if names else ""
