"""Lightning's place for what is done on rank 0 only."""

from __future__ import annotations

from raylit.messages import info as rank_zero_info
from raylit.messages import rank_zero_only
from raylit.messages import warn as rank_zero_warn


def rank_zero_deprecation(text: str) -> None:
    """Warn of something that will go, on rank 0."""
    rank_zero_warn(text, DeprecationWarning, stacklevel=4)


__all__ = ["rank_zero_deprecation", "rank_zero_info", "rank_zero_only", "rank_zero_warn"]
