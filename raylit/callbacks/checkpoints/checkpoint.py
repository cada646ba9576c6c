"""The kind of callback that saves checkpoints: called after all others."""

from __future__ import annotations

from raylit.core.callback import Callback


class Checkpoint(Callback):
    """Base of callbacks that save checkpoints.

    The Trainer calls them last, so that they save what the others have done.
    """
