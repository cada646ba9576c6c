"""Lightning's path to `raylit.callbacks.weights.finetuning`."""

from raylit.callbacks.weights.finetuning import BackboneFinetuning, BaseFinetuning

__all__ = ["BackboneFinetuning", "BaseFinetuning"]
