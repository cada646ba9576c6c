"""Lightning's path to `raylit.tune`."""

from raylit.tune import Tuner

__all__ = ["Tuner"]
