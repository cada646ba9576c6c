"""Lightning's path to `raylit.callbacks.checkpoints.model_checkpoint`."""

from raylit.callbacks.checkpoints.model_checkpoint import ModelCheckpoint

__all__ = ["ModelCheckpoint"]
