"""The display of a sweep: a live table, or plain lines where there is no terminal.

A table stands at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from raylit.errors import MissingPackageError
from raylit.tune.result import ENDED, SweepResult, TrialResult

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import RenderableType

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
        past = [trial for trial in record.past.values() if trial.status in ENDED]
        self._counts = Counter[str](trial.status for trial in past)  # are not told of again
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._live: Live | None = None
        for trial in past:
            if trial.score is not None and self._is_best(trial):
                self._best = trial
        record.listeners.append(self.changed)

    def __enter__(self) -> SweepDisplay:
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            self._live = Live(
                get_renderable=self._table,
                console=Console(stderr=True),
                refresh_per_second=REFRESH_PER_S,
                transient=True,
            )
            self._live.__enter__()
        else:
            threading.Thread(target=self._say_at_times, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def changed(self, trial: TrialResult, event: str) -> None:
        """Take note of a change of a trial; say it where there is no terminal."""
        with self._lock:
            if trial.score is not None and self._is_best(trial):
                self._best = trial
            if event == "end":
                self._counts[trial.status] += 1
                self._ended = [*self._ended, trial][-LAST_ENDED:]
        if self._live is not None:
            return
        if event == "end":
            self._say(f"{trial.name} {trial.status}: {self._score(trial)}", trial)

    def _is_best(self, trial: TrialResult) -> bool:
        best = self._best.score if self._best is not None else None
        if best is None or trial.score is None:
            return trial.score is not None
        return trial.score < best if self._spec.mode == "min" else trial.score > best

    # ---- plain lines ----

    def _say_at_times(self) -> None:
        """Say that the sweep is alive, whether trials report or not."""
        while not self._is_over.wait(max(0.1, self._said + SAY_EVERY_S - time.monotonic())):
            if time.monotonic() - self._said >= SAY_EVERY_S:
                self._say(f"{self._num_running()} running", None)

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
        for column in ("trial", "reports", self._spec.metric):
            table.add_column(column, no_wrap=True, max_width=24, overflow="ellipsis")
        # What room the others leave; without a ratio rich takes it from them
        table.add_column("values", no_wrap=True, overflow="ellipsis", ratio=1)
        for trial in running[:MAX_ROWS]:
            table.add_row(*self._row(trial), style="bold")
        if len(running) > MAX_ROWS:
            table.add_row(f"and {len(running) - MAX_ROWS} more", "", "", "")
        for trial in reversed(ended):
            table.add_row(*self._row(trial), style="dim")
        lines: list[RenderableType] = [Text(head, no_wrap=True, overflow="ellipsis")]
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


def print_table(result: SweepResult, num_rows: int = 20) -> None:
    """Print the trials, best first, why some failed, the Pareto front, and which keys matter."""
    spec = result.spec
    shown = result.trials[:num_rows]
    front = {trial.name for trial in result.front} if len(spec.metrics) > 1 else set()
    console = Console(width=shutil.get_terminal_size((WIDTH, 24)).columns)
    title = f"Sweep {spec.name}, best first"
    table = _table_of(shown, spec, front, title, is_narrow=False)
    wide = Measurement.get(console, console.options.update(width=1000), table).maximum
    if wide > console.width:
        table = _table_of(shown, spec, front, title, is_narrow=True)
    console.print(table)
    if len(result.trials) > num_rows:
        print(f"and {len(result.trials) - num_rows} more trials")
    if front:
        print(f"* on the Pareto front ({len(front)} trials)")
    failed = [trial for trial in result.trials if trial.error]
    for trial in failed[:MAX_ROWS]:
        line = Text(f"{trial.name} failed: {trial.error}")
        line.truncate(console.width, overflow="ellipsis")
        console.print(line)
    if len(failed) > MAX_ROWS:
        print(f"and {len(failed) - MAX_ROWS} more failed")
    shares: dict[str, float] = {}
    with contextlib.suppress(MissingPackageError):  # Optuna: a random search does without
        shares = result.importance
    if shares:
        text = ", ".join(f"{key} {share:.0%}" for key, share in shares.items())
        console.print(Text(f"importance for {spec.metric}: {text}"))


def _table_of(
    trials: Sequence[TrialResult],
    spec: SweepSpec,
    front: Container[str],
    title: str,
    is_narrow: bool,
) -> Table:
    """Return the table, in a narrow terminal with all values in one column."""
    names = list(dict.fromkeys(key for trial in trials for key in values_of(trial, spec)))
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    table.add_column("trial", no_wrap=True)
    for name, mode in spec.metrics.items():
        table.add_column(f"{name} ({mode})", no_wrap=not is_narrow, min_width=6)
    for name in ["values"] if is_narrow else names:
        table.add_column(name, no_wrap=not is_narrow, overflow="fold")
    table.add_column("reports", justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    for trial in trials:
        values = values_of(trial, spec)
        cells = [values.get(name, "") for name in names]
        if is_narrow:
            cells = ["  ".join(f"{name}={value}" for name, value in values.items())]
        table.add_row(
            trial.name + (" *" if trial.name in front else ""),
            *(short(trial.metrics.get(name)) for name in spec.metrics),
            *cells,
            str(trial.iterations),
            f"{trial.time_s:.0f}",
            trial.status,
        )
    return table


def short(value: object) -> str:
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
