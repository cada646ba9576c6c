"""Lightning's path to `raylit.callbacks.checkpoints.checkpoint`."""

from raylit.callbacks.checkpoints.checkpoint import Checkpoint

__all__ = ["Checkpoint"]
