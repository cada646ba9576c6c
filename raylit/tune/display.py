"""What the user sees of a sweep: a live table, or plain lines where there is no terminal; a table at the end."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raylit.tune.result import TrialResult

if TYPE_CHECKING:
    from raylit.tune.record import SweepRecord
    from raylit.tune.spec import SweepSpec

MAX_ROWS = 8  # running trials that are shown
LAST_ENDED = 4
SAY_EVERY_S = 60.0  # at least, where there is no terminal
REFRESH_PER_S = 4
WIDTH = 80


class SweepDisplay:
    """Shows a sweep while it runs.

    Args:
        spec: the sweep's.
        record: what is known of its trials.
        max_reports: how often a trial will report, if that is known.
        budget_s: seconds that the sweep has, or None.
    """

    def __init__(
        self,
        spec: SweepSpec,
        record: SweepRecord,
        max_reports: int | None = None,
        budget_s: float | None = None,
    ) -> None:
        self._spec = spec
        self._record = record
        self._max_reports = max_reports
        self._budget_s = budget_s
        self._started = time.monotonic()
        self._said = time.monotonic()
        self._ended: list[TrialResult] = []
        self._best: TrialResult | None = None
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._live: Live | None = None
        record.on_change = self.changed

    def __enter__(self) -> SweepDisplay:
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._live = Live(
                get_renderable=self._table,
                console=Console(stderr=True),
                refresh_per_second=REFRESH_PER_S,
                transient=True,
            )
            self._live.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*args)
            self._live = None

    def changed(self, trial: TrialResult, event: str) -> None:
        """Take note of what has happened to a trial; say it where there is no terminal."""
        with self._lock:
            if trial.score is not None and self._is_best(trial):
                self._best = trial
            if event == "end":
                self._counts[trial.status] += 1
                self._ended = [*self._ended, trial][-LAST_ENDED:]
        if self._live is not None:
            return
        now = time.monotonic()
        if event == "end":
            self._say(f"{trial.name} {trial.status}: {self._score(trial)}", trial)
        elif now - self._said > SAY_EVERY_S:
            self._say(f"{self._num_running()} running", None)

    def _is_best(self, trial: TrialResult) -> bool:
        best = self._best.score if self._best is not None else None
        if best is None or trial.score is None:
            return trial.score is not None
        return trial.score < best if self._spec.mode == "min" else trial.score > best

    # ---- plain lines ----

    def _say(self, what: str, trial: TrialResult | None) -> None:
        self._said = time.monotonic()
        best = short(self._best.score) if self._best is not None else "-"
        done = sum(self._counts.values())
        line = f"[{done}/{self._spec.num_trials} {clock(self._said - self._started)}] {what}"
        line += f" (best {best})"
        if trial is not None and trial.error:
            line += f"  {trial.error}"
        elif trial is not None:
            values = values_of(trial, self._spec)
            line += "".join(f"  {key}={value}" for key, value in values.items())
        print(line[:400], file=sys.stderr, flush=True)

    def _score(self, trial: TrialResult) -> str:
        return f"{self._spec.metric}={short(trial.score)}"

    def _num_running(self) -> int:
        return sum(1 for trial in self._record.trials.values() if trial.status == "running")

    # ---- a live table ----

    def _table(self) -> Group:
        width = min(shutil.get_terminal_size().columns, 120)
        with self._lock:
            running = [one for one in list(self._record.trials.values()) if one.status == "running"]
            ended = list(self._ended)
        done = sum(self._counts.values())
        now = time.monotonic() - self._started
        head = f"{self._spec.name}: {done} of {self._spec.num_trials} trials, {clock(now)}"
        if self._budget_s is not None:
            head += f", {clock(max(0.0, self._budget_s - now))} left"
        counts = "  ".join(f"{number} {how}" for how, number in sorted(self._counts.items()))
        table = Table(box=None, pad_edge=False, width=width, show_header=True)
        for column in ("trial", "reports", self._spec.metric, "values"):
            table.add_column(column, no_wrap=True, overflow="ellipsis")
        for trial in running[:MAX_ROWS]:
            table.add_row(*self._row(trial), style="bold")
        if len(running) > MAX_ROWS:
            table.add_row(f"and {len(running) - MAX_ROWS} more", "", "", "")
        for trial in reversed(ended):
            table.add_row(*self._row(trial), style="dim")
        lines: list[Any] = [Text(head, no_wrap=True, overflow="ellipsis")]
        if counts:
            lines.append(Text(counts, no_wrap=True, overflow="ellipsis"))
        lines.append(table)
        if self._best is not None:
            values = values_of(self._best, self._spec)
            text = "  ".join(f"{key}={value}" for key, value in values.items())
            best = f"best {self._best.name}: {self._score(self._best)}  {text}"
            lines.append(Text(best, style="green", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)

    def _row(self, trial: TrialResult) -> tuple[str, str, str, str]:
        of = f"/{self._max_reports}" if self._max_reports else ""
        score = trial.last.get(self._spec.metric)
        values = values_of(trial, self._spec)
        text = "  ".join(f"{key}={value}" for key, value in values.items())
        how = "" if trial.status in ("running", "finished") else f" {trial.status}"
        return (
            trial.name + how,
            f"{trial.iterations}{of}",
            short(score) if score is not None else "-",
            trial.error or text,
        )


def values_of(trial: TrialResult, spec: SweepSpec) -> dict[str, str]:
    """Return the swept values of a trial by names as short as they can be told apart."""
    swept = {
        key: value
        for key, value in trial.config.items()
        if any(key == name or key.startswith(f"{name}.") for name in spec.swept)
    }
    lasts = Counter(key.rpartition(".")[2] for key in swept)
    return {
        key.rpartition(".")[2] if lasts[key.rpartition(".")[2]] == 1 else key: short(value)
        for key, value in swept.items()
    }


def print_table(trials: Sequence[TrialResult], spec: SweepSpec, num_rows: int = 20) -> None:
    """Print the trials, best first, and the Pareto front if there are several metrics."""
    from raylit.tune.result import pareto_front

    shown = list(trials[:num_rows])
    names = list(dict.fromkeys(key for trial in shown for key in values_of(trial, spec)))
    front = {trial.name for trial in pareto_front(trials, spec.metrics)}
    several = len(spec.metrics) > 1
    failed = any(trial.error for trial in shown)
    table = Table(title=f"Sweep {spec.name}, best first", title_justify="left", pad_edge=False)
    table.add_column("trial", no_wrap=True)
    for name, mode in spec.metrics.items():
        table.add_column(f"{name} ({mode})", overflow="fold")
    for name in names:
        table.add_column(name, overflow="fold")
    table.add_column("reports", justify="right")
    table.add_column("s", justify="right")
    table.add_column("ended")
    if failed:
        table.add_column("error", no_wrap=True, overflow="ellipsis", max_width=40)
    for trial in shown:
        values = values_of(trial, spec)
        mark = " *" if several and trial.name in front else ""
        table.add_row(
            trial.name + mark,
            *(short(trial.metrics.get(name)) for name in spec.metrics),
            *(values.get(name, "") for name in names),
            str(trial.iterations),
            f"{trial.time_s:.0f}",
            trial.status,
            *([trial.error or ""] if failed else []),
        )
    width = shutil.get_terminal_size((WIDTH, 24)).columns
    console = Console(width=width)
    console.print(table)
    if len(trials) > num_rows:
        print(f"and {len(trials) - num_rows} more trials")
    if several:
        print(f"* on the Pareto front ({len(front)} trials)")


def short(value: Any) -> str:
    """Return a value in few characters."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text.rpartition(".")[2] if text.count(".") > 1 and " " not in text else text


def clock(time_s: float) -> str:
    """Return seconds as a clock shows them."""
    minutes, seconds = divmod(int(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
