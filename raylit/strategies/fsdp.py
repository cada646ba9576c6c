"""Lightning's path to `raylit.parallel`."""

from raylit.parallel import FSDPStrategy

__all__ = ["FSDPStrategy"]
