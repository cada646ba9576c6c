"""Where the time of a run goes: `Profiler` is the contract, the others are its implementations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader

if TYPE_CHECKING:
    from raylit.profilers.advanced import AdvancedProfiler
    from raylit.profilers.base import PassThroughProfiler, Profiler
    from raylit.profilers.by_name import find_profiler
    from raylit.profilers.pytorch import PyTorchProfiler
    from raylit.profilers.simple import SimpleProfiler

__all__ = [
    "AdvancedProfiler",
    "PassThroughProfiler",
    "Profiler",
    "PyTorchProfiler",
    "SimpleProfiler",
    "find_profiler",
]

# Loaded when asked for: a fit that is not measured needs no tool that measures.
_PLACES = {
    "AdvancedProfiler": "raylit.profilers.advanced",
    "PassThroughProfiler": "raylit.profilers.base",
    "Profiler": "raylit.profilers.base",
    "PyTorchProfiler": "raylit.profilers.pytorch",
    "SimpleProfiler": "raylit.profilers.simple",
    "find_profiler": "raylit.profilers.by_name",
}

if not TYPE_CHECKING:  # which finds a name that is not there
    __getattr__ = attribute_loader(__name__, _PLACES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
