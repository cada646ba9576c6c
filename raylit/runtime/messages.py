"""What raylit tells the user while it runs: from rank 0 only, and each warning of a kind once."""

from __future__ import annotations

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from raylit.runtime.secrets import without_secrets

P = ParamSpec("P")
T = TypeVar("T")


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what `sys.stderr` is now, not to what it was when raylit was imported.

    It may have been redirected since.
    """

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, stream: object) -> None:
        """What `StreamHandler` would keep."""


log = logging.getLogger("raylit")
if not log.handlers:
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False

_said: set[str] = set()


def rank() -> int:
    """Rank of this process among all of the run; 0 outside one.

    Launchers that set RANK (torchrun, Ray Train) are understood.
    """
    return int(getattr(rank_zero_only, "rank", None) or os.environ.get("RANK", "0"))


def rank_zero_only(function: Callable[P, T]) -> Callable[P, T | None]:
    """Decorate `function` so that it runs on rank 0 only and returns None elsewhere."""

    @functools.wraps(function)
    def on_rank_zero(*args: P.args, **kwargs: P.kwargs) -> T | None:
        return function(*args, **kwargs) if rank() == 0 else None

    return on_rank_zero


def info(text: str) -> None:
    """Say one line on stderr."""
    if rank() == 0:
        log.info(without_secrets(text))


def warn(text: str, category: type[Warning] = UserWarning, stacklevel: int = 3) -> None:
    """Warn through Python's `warnings`, so that users can filter it."""
    if rank() == 0:
        warnings.warn(without_secrets(text), category, stacklevel=stacklevel)


def warn_once(text: str, category: type[Warning] = UserWarning, key: object = None) -> None:
    """Warn unless this text (or `key`) was warned of before in this process."""
    key = str(key or text)
    if key not in _said:
        _said.add(key)
        warn(text, category, stacklevel=4)
