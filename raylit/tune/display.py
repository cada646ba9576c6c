"""What the user sees of a sweep: a line as each trial ends, a table at the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

if TYPE_CHECKING:
    from raylit.tune.space import SweepSpec
    from raylit.tune.sweep import TrialResult


class SweepDisplay(Callback):
    """Prints a line when a trial ends: how many have, its score, the best so far, its values."""

    def __init__(self, spec: SweepSpec) -> None:
        self.spec = spec
        self.ended = 0
        self.best: float | None = None
        self.started = time.monotonic()
        self.scores: dict[str, float] = {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Remember the best score of each trial."""
        score = result.get(self.spec.metric)
        if score is not None:
            pick = min if self.spec.mode == "min" else max
            self.scores[trial.trial_id] = pick(score, self.scores.get(trial.trial_id, score))
            self.best = pick(score, self.best if self.best is not None else score)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print the trial's line."""
        self._line(trial, "done")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print the trial's line."""
        self._line(trial, "FAILED")

    def _line(self, trial: Any, how: str) -> None:
        self.ended += 1
        values = "  ".join(f"{key}={short(trial.config[key])}" for key in self.spec.swept)
        score, best = (
            short(value) if value is not None else "-"
            for value in (self.scores.get(trial.trial_id), self.best)
        )
        elapsed = time.monotonic() - self.started
        print(
            f"[{self.ended}/{self.spec.num_trials}  {elapsed:.0f} s] {trial} {how}:"
            f" {self.spec.metric}={score} (best {best})  {values}",
            flush=True,
        )


def print_table(trials: list[TrialResult], spec: SweepSpec) -> None:
    """Print all trials, best first."""
    from rich.console import Console
    from rich.table import Table

    failed = any(trial.error for trial in trials)
    columns = [
        "trial",
        f"{spec.metric} ({spec.mode})",
        *spec.swept,
        "reports",
        "seconds",
        *(["error"] if failed else []),
    ]
    table = Table(*columns, title=f"Sweep {spec.name}, best first")
    for trial in trials:
        score = short(trial.score) if trial.score is not None else "-"
        values = [short(trial.config.get(key, "")) for key in spec.swept]
        table.add_row(
            trial.name,
            score,
            *values,
            str(trial.iterations),
            f"{trial.time_s:.0f}",
            *([trial.error or ""] if failed else []),
        )
    Console().print(table)
    best = trials[0] if trials and trials[0].score is not None else None
    if best is not None:
        print("Best:", "  ".join(f"{key}={short(value)}" for key, value in best.config.items()))
        if best.checkpoint:
            print("Checkpoint:", best.checkpoint)


def short(value: Any) -> str:
    """Return a value in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
