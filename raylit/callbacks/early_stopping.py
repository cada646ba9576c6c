"""Lightning's path to `raylit.callbacks.monitors.early_stopping`."""

from raylit.callbacks.monitors.early_stopping import EarlyStopping, EarlyStoppingReason

__all__ = ["EarlyStopping", "EarlyStoppingReason"]
