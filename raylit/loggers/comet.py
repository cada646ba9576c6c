"""Lightning's path to `raylit.loggers.hosted.comet`."""

from raylit.loggers.hosted.comet import CometLogger

__all__ = ["CometLogger"]
