"""Searches: for a learning rate or a batch size, and sweeps of many fits.

The only place for Ray Tune, which is loaded when a sweep is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader
from raylit.tune.tuner import Tuner

if TYPE_CHECKING:
    from raylit.tune.result import SweepResult, TrialResult
    from raylit.tune.spec import SweepSpec

_LAZY = {
    "SweepSpec": "raylit.tune.spec",
    "SweepResult": "raylit.tune.result",
    "TrialResult": "raylit.tune.result",
}

__all__ = ["SweepResult", "SweepSpec", "TrialResult", "Tuner"]

if not TYPE_CHECKING:  # which finds a name that is not there
    __getattr__ = attribute_loader(__name__, _LAZY)
