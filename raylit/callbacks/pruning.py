"""Lightning's path to `raylit.callbacks.weights.pruning`."""

from raylit.callbacks.weights.pruning import ModelPruning

__all__ = ["ModelPruning"]
