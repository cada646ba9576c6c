"""Lightning's path to `raylit.loggers.hosted.neptune`."""

from raylit.loggers.hosted.neptune import NeptuneLogger

__all__ = ["NeptuneLogger"]
