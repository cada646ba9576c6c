"""Lightning's path to `raylit.callbacks.display.progress_bar`."""

from raylit.callbacks.display.progress_bar import ProgressBar, RichProgressBar, TQDMProgressBar

__all__ = ["ProgressBar", "RichProgressBar", "TQDMProgressBar"]
