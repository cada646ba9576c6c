"""Lightning's path to `raylit.callbacks.checkpoints.recovery_checkpoint`."""

from raylit.callbacks.checkpoints.recovery_checkpoint import RecoveryCheckpoint

__all__ = ["RecoveryCheckpoint"]
