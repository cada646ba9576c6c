"""Lightning's path to `raylit.callbacks.weights.finetuning`."""

from raylit.callbacks.weights.finetuning import BackboneFinetuning, BaseFinetuning, multiplicative

__all__ = ["BackboneFinetuning", "BaseFinetuning", "multiplicative"]
