"""Lightning's place for CombinedLoader."""

from raylit.data import CombinedLoader

__all__ = ["CombinedLoader"]
