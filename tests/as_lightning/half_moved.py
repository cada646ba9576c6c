"""A module of the user's that was not moved."""

from __future__ import annotations

import lightning.pytorch as lightning


class Half(lightning.Callback):
    """A callback of Lightning's."""
