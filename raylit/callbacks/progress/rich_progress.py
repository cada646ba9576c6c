"""Lightning's path to `raylit.callbacks.display.foreign_bars`."""

from raylit.callbacks.display.foreign_bars import RichProgressBar, RichProgressBarTheme

__all__ = ["RichProgressBar", "RichProgressBarTheme"]
