"""Lightning's path to `raylit.callbacks.weights.gradient_accumulation_scheduler`."""

from raylit.callbacks.weights.gradient_accumulation_scheduler import GradientAccumulationScheduler

__all__ = ["GradientAccumulationScheduler"]
