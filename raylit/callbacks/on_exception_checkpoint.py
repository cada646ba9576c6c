"""Lightning's path to `raylit.callbacks.checkpoints.on_exception_checkpoint`."""

from raylit.callbacks.checkpoints.on_exception_checkpoint import OnExceptionCheckpoint

__all__ = ["OnExceptionCheckpoint"]
