"""Lightning's place for functions that act on rank 0 only, and for warnings."""

from __future__ import annotations

import warnings
from typing import Any

from raylit.runtime.messages import info as rank_zero_info
from raylit.runtime.messages import log, rank, rank_zero_only
from raylit.runtime.messages import warn as rank_zero_warn


class PossibleUserWarning(UserWarning):
    """A warning of something that may well be meant."""


class WarningCache(set[str]):
    """Says each text once."""

    def warn(self, message: str, stacklevel: int | None = None, **kwargs: Any) -> None:
        """Warn on rank 0, unless it was said before."""
        if message not in self:
            self.add(message)
            rank_zero_warn(message, stacklevel=stacklevel, **kwargs)

    def deprecation(self, message: str, stacklevel: int | None = None) -> None:
        """Warn of something that will go, unless it was said before."""
        self.warn(message, stacklevel=stacklevel, category=DeprecationWarning)

    def info(self, message: str) -> None:
        """Say one line on rank 0, unless it was said before."""
        if message not in self:
            self.add(message)
            rank_zero_info(message)


def rank_zero_deprecation(text: str) -> None:
    """Warn of something that will go, on rank 0."""
    rank_zero_warn(text, DeprecationWarning)


def rank_zero_debug(text: str) -> None:
    """Say one line on stderr, on rank 0, if the logger `raylit` is set to DEBUG."""
    if rank() == 0:
        log.debug(text)


def disable_possible_user_warnings(module: str = "") -> None:
    """Ignore warnings of things that may well be meant.

    Args:
        module: start of the name of the module that warns; empty for all.
    """
    warnings.filterwarnings("ignore", module=module, category=PossibleUserWarning)


__all__ = [
    "WarningCache",
    "rank_zero_debug",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]
