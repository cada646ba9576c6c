"""Lightning's path to the finder of learning rates."""

from raylit.callbacks.finders.learning_rate_finder import LRFinderResult

_LRFinder = LRFinderResult

__all__ = ["LRFinderResult"]
