"""Lightning's path to `raylit.callbacks.display.foreign_bars`."""

from raylit.callbacks.display.foreign_bars import TQDMProgressBar

__all__ = ["TQDMProgressBar"]
