"""Searches: for a learning rate or a batch size, and sweeps of many fits.

The only place for Ray Tune, which is loaded when a sweep is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader
from raylit.tune.tuner import Tuner

if TYPE_CHECKING:
    from raylit.tune.space import SweepSpec
    from raylit.tune.sweep import SweepResult, TrialResult

_LAZY = {
    "SweepSpec": "raylit.tune.space",
    "SweepResult": "raylit.tune.sweep",
    "TrialResult": "raylit.tune.sweep",
}

__all__ = ["SweepResult", "SweepSpec", "TrialResult", "Tuner"]

__getattr__ = attribute_loader(__name__, _LAZY)
