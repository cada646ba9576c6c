"""The kind of callback that saves checkpoints; the contract is in `raylit/core/callback.py`."""

from raylit.core.callback import Checkpoint

__all__ = ["Checkpoint"]
