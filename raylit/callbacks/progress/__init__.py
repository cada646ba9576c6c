"""Lightning's path to `raylit.callbacks.display.progress_bar`."""

from raylit.callbacks.display.foreign_bars import RichProgressBar, TQDMProgressBar
from raylit.callbacks.display.progress_bar import ProgressBar
from raylit.runtime.lazy import attribute_loader

__all__ = ["ProgressBar", "RichProgressBar", "TQDMProgressBar"]

__getattr__ = attribute_loader(__name__)  # its modules, which no module here imports
