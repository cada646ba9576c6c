"""Findings of a check, and the report of all of them."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.table import Table

    from raylit.runtime.aliases import PlainDict

Status = Literal["ok", "unknown", "question", "warning", "problem"]
COLOURS: dict[Status, str] = {
    "ok": "green",
    "unknown": "dim",
    "question": "magenta",
    "warning": "yellow",
    "problem": "bold red",
}
NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of one check.

    Attributes:
        check: what was checked.
        status: `ok`; `unknown`: it could not be told; `question`: a mistake in most models, and
            meant in some, which only the author knows; `warning`: it costs time or accuracy;
            `problem`: it is certainly wrong.
        found: what was found, in words.
        advice: what to do about it.
        values: the same as plain data.
    """

    check: str
    status: Status
    found: str
    advice: str = ""
    values: PlainDict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings of all checks of a model, one for each.

    Example:
        >>> report = trainer.check(model, loader)
        >>> report.ok, report["gradients"].status, report["time"].values["epoch_s"]
        >>> print(report)  # the findings as a table
    """

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    @property
    def problems(self) -> list[Finding]:
        """The findings that are problems."""
        return [finding for finding in self.findings if finding.status == "problem"]

    def __getitem__(self, check: str) -> Finding:
        """Return the finding of a check by its name."""
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(
            f"{check!r} was not checked; there are:"
            f" {', '.join(finding.check for finding in self.findings)}"
        )

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=100, color_system=None, force_jupyter=False)
        with console.capture() as capture:
            console.print(self.table())
        return "\n".join(filter(None, (line.rstrip() for line in capture.get().splitlines())))

    def table(self) -> Table:
        """Return the findings as a table for `rich`."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table("check", "", "found", box=box.SIMPLE_HEAD, pad_edge=False)
        for finding in self.findings:
            found = Text(finding.found)
            if finding.advice:
                found.append(f"\n-> {finding.advice}", "cyan")
            table.add_row(finding.check, Text(finding.status, COLOURS[finding.status]), found)
        return table


def listed(names: Iterable[str]) -> str:
    """Return names in one line, of many the first."""
    names = list(names)
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def duration(time_s: float) -> str:
    """Return a time in the unit in which people read it."""
    if time_s < 0.1:  # of 100 ms and more, two digits would be 1e+02
        return f"{time_s * 1e3:.2g} ms"
    if time_s < 120:
        return f"{time_s:.2g} s" if time_s < 100 else f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 7200 else f"{time_s / 3600:.1f} h"
