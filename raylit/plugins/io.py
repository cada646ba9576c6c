"""Lightning's path to `raylit.checkpoint.io`."""

from raylit.checkpoint.io import (
    AsyncCheckpointIO,
    CheckpointIO,
    TorchCheckpointIO,
    WrappingCheckpointIO,
)

_WrappingCheckpointIO = WrappingCheckpointIO  # so it is called there

__all__ = ["AsyncCheckpointIO", "CheckpointIO", "TorchCheckpointIO", "WrappingCheckpointIO"]
