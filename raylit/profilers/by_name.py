"""From the argument `Trainer(profiler=...)` to a profiler."""

from __future__ import annotations

from raylit.errors import ConfigError, did_you_mean
from raylit.profilers.advanced import AdvancedProfiler
from raylit.profilers.base import PassThroughProfiler, Profiler
from raylit.profilers.pytorch import PyTorchProfiler
from raylit.profilers.simple import SimpleProfiler

PROFILERS: dict[str, type[Profiler]] = {
    "simple": SimpleProfiler,
    "advanced": AdvancedProfiler,
    "pytorch": PyTorchProfiler,
}


def find_profiler(profiler: Profiler | str | None) -> Profiler:
    """Return the profiler for its short name; one that sees nothing for None.

    Raises:
        ConfigError: there is no such profiler.
    """
    if profiler is None:
        return PassThroughProfiler()
    if isinstance(profiler, Profiler):
        return profiler
    if not isinstance(profiler, str) or profiler.lower() not in PROFILERS:
        hint = did_you_mean(profiler, PROFILERS) if isinstance(profiler, str) else ""
        raise ConfigError(
            f"profiler={profiler!r} is not known. Use one of {', '.join(map(repr, PROFILERS))}, or"
            f" a Profiler object.{hint}"
        )
    return PROFILERS[profiler.lower()]()
