"""Lightning's path to `raylit.callbacks.monitors.learning_rate_monitor`."""

from raylit.callbacks.monitors.learning_rate_monitor import LearningRateMonitor

__all__ = ["LearningRateMonitor"]
