"""Lightning's path to `raylit.runtime.batch`."""

from raylit.runtime.batch import size_of as extract_batch_size

__all__ = ["extract_batch_size"]
