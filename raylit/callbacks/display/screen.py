"""Draws the progress of a run: a live bar on a terminal, plain lines elsewhere.

The ProgressBar callback of rank 0 says what is to be seen, as small dicts of plain data, a few
times per second; the screen draws it. On Ray the two are in different processes, and the dicts
travel.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from typing import Any

Shown = dict[
    str, Any
    # Stage, epoch, max_epochs, batch, total (None: unknown), rate (batches per second), metrics,
    # is_last
]


class PlainScreen:
    """One line every few seconds and at the end of each epoch; no control characters."""

    def __init__(self, every_s: float = 10.0) -> None:
        self.every_s = every_s
        self._next = time.monotonic() + every_s

    def show(self, shown: Shown) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        ends = shown["is_last"] and shown["stage"] != "validate"
        if not ends and (
            shown["stage"] == "validate" or shown["batch"] == shown["total"] or now < self._next
        ):
            return
        self._next = now + self.every_s
        self.print(
            f"{heading(shown)} {count(shown)}  {shown['rate']:.1f} it/s "
            f" {values(shown['metrics'], '=')}".rstrip()
        )

    def print(self, text: str) -> None:
        """Print `text`."""
        print(text, flush=True)

    def close(self) -> None:
        """Nothing is held."""


class RichScreen:
    """Live bars of rich: one for training, one for a validation while it runs, metrics below."""

    def __init__(self) -> None:
        from rich.console import Console, RenderableType
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.text import Text

        class Bars(Progress):
            """The bars, and below them a line for which a column would be too narrow."""

            below = ""

            def get_renderables(self) -> Iterable[RenderableType]:
                yield from super().get_renderables()
                if self.below:
                    yield Text(self.below, style="cyan")

        self._console = Console()
        self._progress = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[rate]}"),
            console=self._console,
            refresh_per_second=8,
            transient=False,
        )
        self._tasks: dict[str, Any] = {}

    def show(self, shown: Shown) -> None:
        """Bring the bar of this stage up to date."""
        self._progress.start()
        stage = shown["stage"]
        rate = f"{shown['rate']:.1f} it/s"
        if shown["metrics"]:
            self._progress.below = values(shown["metrics"], " ")
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(
                heading(shown), total=shown["total"], rate=rate
            )
        task = self._tasks[stage]
        if stage == "train" and self._progress.tasks[
            self._progress.task_ids.index(task)
        ].description != heading(shown):
            self._progress.reset(task, total=shown["total"], description=heading(shown), rate=rate)
        self._progress.update(task, completed=shown["batch"], total=shown["total"], rate=rate)
        if shown["is_last"]:
            self._progress.refresh()
            if stage in ("validate", "sanity_check"):
                self._progress.remove_task(self._tasks.pop(stage))

    def print(self, text: str) -> None:
        """Print `text` above the bar."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        self._progress.stop()


def make_screen() -> PlainScreen | RichScreen | None:
    """Return the screen that RAYLIT_PROGRESS (`rich`, `plain`, `none`) asks for.

    Unset: a live bar on a terminal and plain lines elsewhere.
    """
    wanted = os.environ.get("RAYLIT_PROGRESS", "rich" if sys.stdout.isatty() else "plain")
    if wanted == "none":
        return None
    return RichScreen() if wanted == "rich" else PlainScreen()


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


def values(metrics: dict[str, object], join: str) -> str:
    """Return metrics as one short line."""
    return "  ".join(
        f"{name}{join}{value:.4g}" if isinstance(value, float) else f"{name}{join}{value}"
        for name, value in metrics.items()
    )
