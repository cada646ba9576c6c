"""Lightning's path to `raylit.parallel`."""

from raylit.parallel import DDPStrategy

__all__ = ["DDPStrategy"]
