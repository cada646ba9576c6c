"""SimpleProfiler: how long each action took."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict

from raylit.profilers.base import Profiler


class SimpleProfiler(Profiler):
    """Measures the seconds of each action and reports mean and total.

    Args:
        dirpath: see `Profiler`.
        filename: see `Profiler`.
        extended: whether the report has the number of calls and the share of the whole time too.

    Attributes:
        current_actions: the actions that run, with the time of their start.
        recorded_durations: seconds of each call of an action.

    Raises:
        ValueError: an action is started that already runs, or stopped that does not.

    Example:
        >>> trainer = Trainer(
        ...     profiler=SimpleProfiler(filename="times")
        ... )  # or profiler="simple" to print the report
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        extended: bool = True,
    ) -> None:
        super().__init__(dirpath, filename)
        self.extended = extended
        self.current_actions: dict[str, float] = {}
        self.recorded_durations: defaultdict[str, list[float]] = defaultdict(list)
        self.start_time = time.perf_counter()

    def start(self, action_name: str) -> None:
        if action_name in self.current_actions:
            raise ValueError(
                f"The action {action_name!r} was started, but it already runs. Stop it first, or"
                " use another name."
            )
        self.current_actions[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        end = time.perf_counter()
        if action_name not in self.current_actions:
            raise ValueError(
                f"The action {action_name!r} was stopped, but it does not run. Start it first."
            )
        self.recorded_durations[action_name].append(end - self.current_actions.pop(action_name))

    def summary(self) -> str:
        title = f"{self._stage.upper()} Profiler Report" if self._stage else "Profiler Report"
        rows = [
            (action, math.fsum(times) / len(times), len(times), math.fsum(times))
            for action, times in self.recorded_durations.items()
        ]
        if not rows:
            return os.linesep.join([title, "", ""])
        if self.extended:
            total_s = time.perf_counter() - self.start_time
            header = ["Action", "Mean duration (s)", "Num calls", "Total time (s)", "Percentage %"]
            whole = [["Total", "-", f"{sum(row[2] for row in rows)}", f"{total_s:.5}", "100 %"]]
            rows.sort(key=lambda row: row[3], reverse=True)
            cells = [
                [name, f"{mean:.5}", f"{calls}", f"{time_s:.5}", f"{100 * time_s / total_s:.5}"]
                for name, mean, calls, time_s in rows
            ]
        else:
            header = ["Action", "Mean duration (s)", "Total time (s)"]
            whole = []
            rows.sort(key=lambda row: row[1], reverse=True)
            cells = [[name, f"{mean:.5}", f"{time_s:.5}"] for name, mean, _, time_s in rows]
        return os.linesep.join([title, "", *_table(header, whole, cells), ""])


def _table(header: list[str], whole: list[list[str]], cells: list[list[str]]) -> list[str]:
    """Return the lines of a table.

    They are rules, the header, the rows for the whole, and a row for each action.
    """
    width = max(len(row[0]) for row in cells)

    def line(row: list[str]) -> str:
        return f"|  {row[0]:<{width}s}\t|" + "".join(f"  {cell:<15}\t|" for cell in row[1:])

    rule = "-" * len((os.linesep + line(header)).expandtabs())
    top = [rule, line(header), rule, *(line(row) + os.linesep + rule for row in whole)]
    return [*top, *map(line, cells), rule]
