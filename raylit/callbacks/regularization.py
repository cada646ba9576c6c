"""Lightning's path to `raylit.callbacks.weights.regularization`."""

from raylit.callbacks.weights.regularization import Regularization

__all__ = ["Regularization"]
