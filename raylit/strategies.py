"""Lightning's place for strategies."""

from raylit.parallel import DDPStrategy

__all__ = ["DDPStrategy"]
