"""Lightning's name for `raylit.tune`, as far as it has it."""

from raylit.tune import Tuner

__all__ = ["Tuner"]
