"""Draws the progress of a run: a live bar on a terminal, plain lines elsewhere.

The ProgressBar callback of rank 0 describes each picture in a small dict of plain data, a few times
per second; the screen draws it. On Ray the two are in different processes, and the dicts travel
between them.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from raylit.callbacks.display.footer import LEAST_ROWS, Footer, size_of
from raylit.runtime.notebook import is_notebook

if TYPE_CHECKING:
    from rich.progress import TaskID

Shown = dict[
    str, Any
    # Stage, epoch, max_epochs, batch, total (None: unknown), rate (batches per second), left_s and
    # fit_left_s (seconds until the end of this stage or epoch, and of the fit; None: unknown),
    # metrics, is_last
]


class PlainScreen:
    """One line every few seconds and at the end of each epoch; no control characters."""

    def __init__(self, every_s: float = 10.0) -> None:
        self.every_s = every_s
        self._next = time.monotonic() + every_s

    def show(self, shown: Shown) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        is_validation = shown["stage"] == "validate"
        ends = shown["is_last"] and not is_validation
        # the end of an epoch comes as a picture of its own, which has the metrics
        is_at_end = shown["is_last"] or shown["batch"] == shown["total"]
        if not ends and (is_at_end or now < self._next):
            return
        self._next = now + self.every_s
        parts = [
            f"{heading(shown)} {count(shown)}",
            f"{shown['rate']:.1f} it/s",
            left(shown),
            values(shown["metrics"], "="),
        ]
        self.print("  ".join(filter(None, parts)))

    def print(self, text: str) -> None:
        """Print `text`."""
        print(text, flush=True)

    def close(self) -> None:
        """Nothing is held."""


class NotebookCell:
    """The output of a notebook's cell, where bars are drawn in place; a terminal has a Footer."""

    columns = 80

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, lines: list[str]) -> None:
        """Show these lines in the place of those of before."""
        from IPython.display import display

        data = {"text/plain": "\n".join(lines)}
        if self._handle is None:
            self._handle = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(data, raw=True)

    def close(self, last: list[str]) -> None:
        """Leave these lines."""
        self.draw(last)


class LiveScreen:
    """Bars in one place: one for training, one for a validation while it runs.

    Below them the time that is left and the metrics. It draws when it is shown something, and never
    else: while a debugger or `input` waits for the user, it stands still.

    Args:
        place: the last lines of a terminal, or a notebook's cell.
    """

    def __init__(self, place: Footer | NotebookCell) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )

        self._place = place
        self._console = Console(file=sys.stdout, force_terminal=True, force_jupyter=False)
        self._progress = Progress(  # never started: rich makes the lines, the footer draws them
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[rate]}"),
            console=self._console,
            auto_refresh=False,
        )
        self._tasks: dict[str, TaskID] = {}
        self._left = ""
        self._metrics = ""
        # the first picture takes long, and how long one takes says when the next is due
        task = self._progress.add_task("", total=2, completed=1, rate="")
        self._lines()
        self._progress.remove_task(task)

    def show(self, shown: Shown) -> None:
        """Bring the bar of this stage up to date."""
        stage = shown["stage"]
        rate = f"{shown['rate']:.1f} it/s"
        total = shown["total"]
        name = heading(shown)
        is_within = stage in ("validate", "sanity_check")
        if not is_within:
            self._left = left(shown)
        if shown["metrics"]:
            self._metrics = values(shown["metrics"], " ")
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(name, total=total, rate=rate)
        task = self._tasks[stage]
        if self._progress.tasks[self._progress.task_ids.index(task)].description != name:
            self._progress.reset(task, total=total, description=name, rate=rate)
        self._progress.update(task, completed=shown["batch"], total=total, rate=rate)
        self._place.draw(self._lines())
        if shown["is_last"] and is_within:
            self._progress.remove_task(self._tasks.pop(stage))

    def _lines(self) -> list[str]:
        from rich.text import Text

        width = self._place.columns
        below = Text(self._left, "dim")
        below.append("  " * bool(self._left and self._metrics))
        below.append(self._metrics, "cyan")
        with self._console.capture() as captured:
            self._console.print(self._progress.get_renderable(), width=width)
            if below:
                self._console.print(below, width=width)
        return captured.get().splitlines()

    def print(self, text: str) -> None:
        """Print `text` above the bar."""
        print(text, flush=True)

    def close(self) -> None:
        """Leave the bar as lines among the others, and give a terminal back."""
        self._place.close(self._lines())


def make_screen() -> PlainScreen | LiveScreen | None:
    """Return the screen that RAYLIT_PROGRESS (`rich`, `plain`, `none`) asks for.

    Unset: a live bar on a terminal that can show one and in a notebook, and plain lines elsewhere.
    """
    wanted = os.environ.get("RAYLIT_PROGRESS") or ("plain" if shows_lines_only() else "rich")
    if wanted == "none":
        return None
    if wanted == "rich" and is_notebook():
        return LiveScreen(NotebookCell())
    if wanted == "rich" and sys.stdout.isatty() and size_of(sys.stdout).lines >= LEAST_ROWS:
        return LiveScreen(Footer(sys.stdout))
    return PlainScreen()


def shows_lines_only() -> bool:
    """Tell whether the environment is one in which a terminal is no place for a bar.

    A terminal that cannot move its cursor, a buffer of Emacs, or the log of a CI job.
    """
    return (
        os.environ.get("TERM", "") in ("", "dumb", "unknown")
        or bool(os.environ.get("INSIDE_EMACS"))
        or os.environ.get("CI", "").lower() not in ("", "0", "false")
    )


def heading(shown: Shown) -> str:
    """Return the words before the bar, such as `epoch 3/20`."""
    if shown["stage"] == "train":
        return f"epoch {shown['epoch'] + 1}" + (
            f"/{shown['max_epochs']}" if shown["max_epochs"] else ""
        )
    return {"sanity_check": "sanity check", "validate": "validation"}.get(
        shown["stage"], str(shown["stage"])
    )


def count(shown: Shown) -> str:
    """Return `batch/total`."""
    return f"{shown['batch']}/{'?' if shown['total'] is None else shown['total']}"


def left(shown: Shown) -> str:
    """Return the time that is left, such as `0:12 left, 3:40 of the fit`."""
    now = "" if shown["left_s"] is None or shown["is_last"] else f"{clock(shown['left_s'])} left"
    if not shown["fit_left_s"]:
        return now
    of_fit = clock(shown["fit_left_s"])
    return f"{now}, {of_fit} of the fit" if now else f"{of_fit} left of the fit"


def clock(time_s: float) -> str:
    """Return a time as `m:ss`, `h:mm:ss` or, of more than two days, `5 days`."""
    minutes, seconds = divmod(round(time_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours / 24:.0f} days"
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def values(metrics: dict[str, object], join: str) -> str:
    """Return metrics as one short line."""
    return "  ".join(
        f"{name}{join}{value:.4g}" if isinstance(value, float) else f"{name}{join}{value}"
        for name, value in metrics.items()
    )
