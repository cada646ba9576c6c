"""The result of a sweep: its trials, the best of them, tables and pictures."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from raylit.core import shown
from raylit.errors import LaunchError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from raylit.core.module import LightningModule
    from raylit.tune.aliases import Values
    from raylit.tune.spec import SweepSpec

ModuleT = TypeVar("ModuleT", bound="LightningModule")
Status = Literal["pending", "running", "paused", "finished", "stopped", "failed", "killed"]
ENDED = ("finished", "stopped", "failed")  # and not to be gone on with


MOST_ROWS = 10  # of the table that a notebook shows


@dataclass
class TrialResult:
    """One trial.

    Attributes:
        name: its folder and the name of its MLflow run.
        config: the values that gave its score, by their full names; a scheduler such as `pbt` may
            have changed them before and since.
        status: `finished`, `stopped` (by the scheduler), `failed`, `killed` (with the sweep), or
            where it is: `pending`, `running`, `paused`.
        score: the best value of the sweep's first metric, None if it reported none.
        metrics: the values reported together with that one.
        last: the values reported last.
        checkpoint: its best checkpoint, or None.
        run_id: its MLflow run, or None.
        iterations: how often it reported.
        time_s: seconds it ran.
        error: what ended it in one line, or None; its traceback is in `traceback.txt` in its
            folder.
        epoch: in which the best value was reported, from 0; None if it reported none.
        stop_reason: why it was stopped before its end, or None.
    """

    name: str
    config: Values
    status: Status = "pending"
    score: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    run_id: str | None = None
    iterations: int = 0
    time_s: float = 0.0
    error: str | None = None
    epoch: int | None = None
    stop_reason: str | None = None

    @property
    def number(self) -> int:
        """Its number in the sweep, from 0."""
        return int(self.name.rpartition("-")[2])

    def load(self, cls: type[ModuleT], **arguments: Any) -> ModuleT:
        """Return a module with the weights of the best checkpoint.

        Args:
            cls: the module's class.
            arguments: as in `load_from_checkpoint`.

        Raises:
            LaunchError: the trial has saved no checkpoint.

        Example:
            >>> model = sweep.best.load(LitDigits)
        """
        if self.checkpoint is None:
            raise LaunchError(
                f"{self.name} has saved no checkpoint. Give the Trainer of the sweep a"
                " ModelCheckpoint, and leave enable_checkpointing on."
            )
        loaded: ModuleT = cls.load_from_checkpoint(self.checkpoint, **arguments)
        return loaded


@dataclass(repr=False)
class SweepResult:
    """All trials of a sweep.

    Attributes:
        spec: what was asked for.
        trials: best first; those without a score last.
        run_id: the sweep's MLflow run, or None.
        folder: where the trials keep their files.
        best_config: file with the config of the best trial, for `raylit fit --config`.
        where: how to look at the trials side by side in MLflow, or "".
        best_values: the values of the best trial as the search has them, with parts that are
            components in one piece.

    Example:
        >>> sweep.best.config, sweep.best.checkpoint
        >>> sweep.dataframe
    """

    spec: SweepSpec
    trials: list[TrialResult] = field(default_factory=list)
    run_id: str | None = None
    folder: str = ""
    where: str = ""
    best_config: str = ""
    best_values: Values = field(default_factory=dict, init=False)

    @property
    def best(self) -> TrialResult:
        """The trial with the best score; of several metrics the first counts.

        Raises:
            LaunchError: no trial reported one.
        """
        if not self.trials or self.trials[0].score is None:
            errors = "; ".join(
                f"{trial.name}: {trial.error}" for trial in self.trials if trial.error
            )
            raise LaunchError(f"No trial of the sweep reported {self.spec.metric!r}. {errors}")
        return self.trials[0]

    @functools.cached_property
    def importance(self) -> dict[str, float]:
        """The share of the variance of the score that each swept key explains, the largest first.

        Empty if too few trials have a score. Computed by Optuna (fANOVA, Hutter et al. 2014).

        Raises:
            MissingPackageError: Optuna or scikit-learn is not installed.
        """
        from raylit.tune.plots import compute_importance

        return compute_importance(self)

    @property
    def front(self) -> list[TrialResult]:
        """The Pareto front: trials that no other beats in all metrics.

        With one metric, the best.
        """
        return pareto_front(self.trials, self.spec.metrics)

    @property
    def dataframe(self) -> DataFrame:
        """A pandas DataFrame with a row for each trial: its values, its score, its metrics."""
        import pandas as pd

        swept = list(dict.fromkeys(key for trial in self.trials for key in trial.config))
        names = list(self.spec.metrics)
        rows = [
            {
                "trial": trial.name,
                "status": trial.status,
                **{key: trial.config.get(key) for key in swept},
                **{name: trial.metrics.get(name) for name in names},
                "iterations": trial.iterations,
                "time_s": trial.time_s,
                "checkpoint": trial.checkpoint,
                "run_id": trial.run_id,
                "error": trial.error,
            }
            for trial in self.trials
        ]
        frame = pd.DataFrame(rows)
        texts = ["trial", "status", "checkpoint", "run_id", "error"]
        return frame.convert_dtypes().astype({name: "string" for name in texts if name in frame})

    def plot(self, kind: str = "slices") -> Figure:
        """Draw the trials.

        Args:
            kind: `history` (the scores in their order), `slices` (the score over each swept key),
                `parallel` (parallel coordinates), `importance` (of each key, by Optuna),
                `contour` (the score over two keys), `front` (one metric over another).

        Returns:
            A matplotlib Figure.

        Raises:
            ConfigError: there is no such kind.
        """
        from raylit.tune.plots import draw

        figure: Figure = draw(self, kind)
        return figure

    def __repr__(self) -> str:
        return f"SweepResult({'; '.join(f'{name}: {value}' for name, value in self._rows())})"

    def _repr_html_(self) -> str:
        scored = [trial for trial in self.trials if is_number(trial.score)]
        table = self.dataframe.head(MOST_ROWS).to_html(index=False, border=0)
        rows = self._rows()
        if self.where:
            rows.append(("look at it", self.where))
        return shown.as_html(rows, self.plot("history") if scored else None) + table

    def _rows(self) -> list[tuple[str, str]]:
        """Return how many trials there are, and the best, in words."""
        counts = Counter(trial.status for trial in self.trials)
        ends = ", ".join(f"{number} {status}" for status, number in counts.items())
        rows = [("trials", f"{len(self.trials)} ({ends})" if ends else "none")]
        if self.trials and self.trials[0].score is not None:
            best = self.trials[0]
            values = ", ".join(f"{key}={value}" for key, value in best.config.items())
            score = f"{self.spec.metric}={best.score:.6g}"
            rows.append(("best", f"{best.name}, {score}, {values}"))
        return [*rows, ("files", self.folder)] if self.folder else rows


def sort_trials(trials: Sequence[TrialResult], mode: str) -> list[TrialResult]:
    """Return the trials, best first; those without a score, or with one that is no number, last."""
    sign = 1 if mode == "min" else -1

    def rank(trial: TrialResult) -> tuple[bool, float, str]:
        score = trial.score
        if score is None or score != score:
            return True, 0.0, trial.name
        return False, sign * score, trial.name

    return sorted(trials, key=rank)


def is_number(value: float | None) -> bool:
    """Tell whether there is a value and it is not NaN."""
    return value is not None and value == value


def pareto_front(trials: Sequence[TrialResult], metrics: Mapping[str, str]) -> list[TrialResult]:
    """Return the trials that no other is at least as good as in all metrics and better in one."""
    points = {
        trial.name: [
            trial.metrics[name] * (1 if mode == "min" else -1) for name, mode in metrics.items()
        ]
        for trial in trials
        if all(is_number(trial.metrics.get(name)) for name in metrics)
    }
    # In this order one that beats another stands before it, so that the front alone is compared
    front: list[list[float]] = []
    for point in sorted(points.values()):
        if not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True))
            for other in front
        ):
            front.append(point)
    return [trial for trial in trials if points.get(trial.name) in front]
