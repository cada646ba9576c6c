"""Messages to the user while raylit runs: from rank 0 only, each kind of warning once."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType
from typing import ParamSpec, TextIO, TypeVar

from raylit.runtime.secrets import without_secrets

P = ParamSpec("P")
T = TypeVar("T")


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to the present `sys.stderr`, not to the one at the time when raylit was imported.

    It may have been redirected since.
    """

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: object) -> None:
        """Keep none, which `StreamHandler` would."""


log = logging.getLogger("raylit")
if not log.handlers:
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False

warned: set[str] = set()  # what `warn_once` has warned of in this process
_OWN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


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


def is_verbose() -> bool:
    """Tell whether RAYLIT_VERBOSE (`--verbose`) asks for all that there is to say."""
    return bool(os.environ.get("RAYLIT_VERBOSE"))


def info(text: str) -> None:
    """Say one line on stderr."""
    if rank() == 0 and log.isEnabledFor(logging.INFO):
        log.info(without_secrets(text))


def warn(text: str, category: type[Warning] = UserWarning, stacklevel: int | None = None) -> None:
    """Warn through Python's `warnings`, so that users can filter it.

    Args:
        text: what is said.
        category: class of the warning.
        stacklevel: as of `warnings.warn`; None: the line that called raylit, which is the user's.
    """
    if rank() == 0:
        level = _level_of_user() if stacklevel is None else stacklevel
        warnings.warn(without_secrets(text), category, stacklevel=level)


def _level_of_user() -> int:
    """Return the stacklevel, in the caller, of the first line that is none of raylit's.

    In a thread or a worker there is none: then of the line that warns.
    """
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
        level += 1
    is_user = frame is not None and not frame.f_code.co_filename.startswith(_starts_workers())
    return level if is_user else 3


def _starts_workers() -> tuple[str, ...]:
    """Return the files, or folders, that call raylit in a thread or a worker."""
    spec = getattr(sys.modules.get("ray"), "__spec__", None)
    folders = spec.submodule_search_locations if spec is not None else None
    return (threading.__file__, *(folders or ()))


def warn_once(text: str, category: type[Warning] = UserWarning, key: object = None) -> None:
    """Warn unless this text (or `key`) was warned of before in this process."""
    key = str(key or text)
    if key not in warned:
        warned.add(key)
        warn(text, category)


def number_of(number: int, one: str, several: str = "") -> str:
    """Return a number and its noun, in the singular or the plural.

    Example:
        >>> number_of(1, "epoch"), number_of(2, "epoch"), number_of(2, "batch", "batches")
        ('1 epoch', '2 epochs', '2 batches')
    """
    return f"{number} {one if number == 1 else several or one + 's'}"
