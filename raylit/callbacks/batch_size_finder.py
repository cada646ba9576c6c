"""Lightning's path to `raylit.callbacks.finders.batch_size_finder`."""

from raylit.callbacks.finders.batch_size_finder import BatchSizeFinder

__all__ = ["BatchSizeFinder"]
