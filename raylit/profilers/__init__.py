"""Where the time of a run goes: `Profiler` is the contract, the others are its implementations."""

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
