"""AdvancedProfiler: which functions the time of each action went to, by Python's cProfile."""

from __future__ import annotations

import cProfile
import io
import os
import pstats
import tempfile

from raylit.errors import ConfigError
from raylit.profilers.base import Profiler
from raylit.runtime.aliases import StateDict


class AdvancedProfiler(Profiler):
    """Runs cProfile over each action and reports its functions by cumulative time.

    It makes Python code several times slower.

    While an action lies within another, the time is counted for the inner one only.

    Args:
        dirpath: see `Profiler`.
        filename: see `Profiler`.
        line_count_restriction: functions to report for each action: a number (10), or a share of
            them (0.5).
        dump_stats: whether to write what was measured to `dirpath`, a `.prof` file for each action,
            for tools such as snakeviz.

    Attributes:
        profiled_actions: the cProfile object of each action.

    Raises:
        ConfigError: at the end, with `dump_stats` and neither `dirpath` nor a logger with a folder.
        ValueError: an action is stopped that was never started.

    Source: https://docs.python.org/3/library/profile.html

    Example:
        >>> trainer = Trainer(
        ...     profiler=AdvancedProfiler(
        ...         dirpath="profiles", filename="functions", line_count_restriction=10
        ...     )
        ... )
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        line_count_restriction: float = 1.0,
        dump_stats: bool = False,
    ) -> None:
        super().__init__(dirpath, filename)
        self.line_count_restriction = line_count_restriction
        self.dump_stats = dump_stats
        self.profiled_actions: dict[str, cProfile.Profile] = {}
        self._running: list[cProfile.Profile] = []

    def start(self, action_name: str) -> None:
        if self._running:  # Python has one profiler at a time
            self._running[-1].disable()
        self._running.append(self.profiled_actions.setdefault(action_name, cProfile.Profile()))
        self._running[-1].enable()

    def stop(self, action_name: str) -> None:
        profile = self.profiled_actions.get(action_name)
        if profile is None:
            raise ValueError(
                f"The action {action_name!r} was stopped, but it was never started. Start it first."
            )
        profile.disable()
        if profile in self._running:
            self._running.reverse()
            self._running.remove(profile)  # the last that was started
            self._running.reverse()
        if self._running:
            self._running[-1].enable()

    def summary(self) -> str:
        reports = {}
        for action, profile in self.profiled_actions.items():
            profile.disable()
            if self.dump_stats:
                self._dump(action, profile)
            text = io.StringIO()
            pstats.Stats(profile, stream=text).strip_dirs().sort_stats("cumulative").print_stats(
                self.line_count_restriction
            )
            reports[action] = text.getvalue()
        return self._stats_to_str(reports)

    def teardown(self, stage: str | None) -> None:
        super().teardown(stage)
        for profile in self._running:
            profile.disable()
        self._running.clear()
        self.profiled_actions.clear()

    def _dump(self, action: str, profile: cProfile.Profile) -> None:
        if self.dirpath is None:
            raise ConfigError(
                "AdvancedProfiler(dump_stats=True) has no folder for its files. Give it"
                " dirpath=..., or the Trainer a logger."
            )
        with (
            tempfile.TemporaryDirectory() as folder,
            self._open(self._prepare_filename(action, ".prof"), "wb") as file,
        ):
            profile.dump_stats(f"{folder}/stats")  # writes to local files only
            with open(f"{folder}/stats", "rb") as dumped:
                file.write(dumped.read())

    def __getstate__(self) -> StateDict:
        # cProfile's objects cannot be pickled
        return super().__getstate__() | {
            "profiled_actions": {},
            "_running": [],
        }
