"""Sweeps: many fits with values drawn from a space. The only place for Ray Tune."""

from raylit.tune.space import SweepSpec
from raylit.tune.sweep import SweepResult, TrialResult, Tuner

__all__ = ["SweepResult", "SweepSpec", "TrialResult", "Tuner"]
