"""Lightning's path to `raylit.callbacks.display.progress_bar`."""

from raylit.callbacks.display.foreign_bars import RichProgressBar, TQDMProgressBar
from raylit.callbacks.display.progress_bar import ProgressBar

__all__ = ["ProgressBar", "RichProgressBar", "TQDMProgressBar"]
