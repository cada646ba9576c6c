"""From the argument `Trainer(profiler=...)` to a profiler."""

from __future__ import annotations

import importlib

from raylit.errors import ConfigError, did_you_mean, foreign_hint
from raylit.profilers.base import PassThroughProfiler, Profiler

# by their short names: the module, loaded when one of them is asked for, and the class
PROFILERS = {
    "simple": ("raylit.profilers.simple", "SimpleProfiler"),
    "advanced": ("raylit.profilers.advanced", "AdvancedProfiler"),
    "pytorch": ("raylit.profilers.pytorch", "PyTorchProfiler"),
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
            f" a Profiler object.{hint}{foreign_hint(profiler)}"
        )
    module, name = PROFILERS[profiler.lower()]
    found: Profiler = getattr(importlib.import_module(module), name)()
    return found
