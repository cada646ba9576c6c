"""Lightning's path to `raylit.core.logger` and `raylit.loggers.dummy`."""

from raylit.core.logger import Logger
from raylit.loggers.dummy import DummyExperiment, DummyLogger, rank_zero_experiment

__all__ = ["DummyExperiment", "DummyLogger", "Logger", "rank_zero_experiment"]
