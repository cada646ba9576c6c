"""Lightning's path to `raylit.callbacks.monitors.timer`."""

from raylit.callbacks.monitors.timer import Timer

__all__ = ["Timer"]
