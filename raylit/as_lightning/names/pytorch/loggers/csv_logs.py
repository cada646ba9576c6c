"""Lightning's path to `raylit.loggers.csv`."""

from raylit.loggers.csv import CSVLogger, ExperimentWriter

_ExperimentWriter = ExperimentWriter

__all__ = ["CSVLogger", "ExperimentWriter"]
