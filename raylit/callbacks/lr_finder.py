"""Lightning's path to `raylit.callbacks.finders.learning_rate_finder`."""

from raylit.callbacks.finders.learning_rate_finder import LearningRateFinder

__all__ = ["LearningRateFinder"]
