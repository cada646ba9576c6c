"""Lightning's path to `raylit.engine.optimizers`."""

from raylit.engine.optimizers import LightningOptimizer

__all__ = ["LightningOptimizer"]
