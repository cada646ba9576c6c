"""Lightning's path to `raylit.loggers.csv`."""

from raylit.loggers.csv import CSVLogger

__all__ = ["CSVLogger"]
