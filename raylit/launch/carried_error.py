"""An exception on its way from a worker to the process that shows it."""

from __future__ import annotations

import contextlib
import traceback
from typing import Any

import cloudpickle

from raylit.errors import LaunchError


class WorkerTraceback(Exception):
    """The traceback of an exception in a worker, as text: the cause of the one that is shown."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def packed(error: BaseException) -> bytes:
    """Return class, arguments and attributes of an exception, pickled.

    Of one that cannot be pickled: an exception that says the same.
    """
    try:
        # As the class in Python itself would be pickled: a user's __init__ may want other arguments
        # than those of its base. What that keeps outside of __dict__, such as the file name of an
        # OSError, is in its own arguments.
        _, arguments, *state = _builtin_of(type(error)).__reduce__(error)
        parts: bytes = cloudpickle.dumps((type(error), arguments, state[0] if state else {}))
        cloudpickle.loads(parts)
    except Exception:  # whatever the user's own attributes raise when pickled
        said = "".join(_without_notes(error).format_exception_only()).strip()
        return packed(
            LaunchError(f"{said} (this stands for the original exception, which cannot be pickled)")
        )
    return parts


def unpacked(parts: bytes) -> BaseException:
    """Return the exception that `packed` made these bytes of."""
    kind, arguments, state = cloudpickle.loads(parts)
    error: BaseException = kind.__new__(kind, *arguments)
    # not the user's __init__; but that of the class in Python itself, which sets what is not in
    # the state, such as the code of SystemExit
    with contextlib.suppress(TypeError):
        _builtin_of(kind).__init__(error, *arguments)
    error.__setstate__(state)
    return error


def _without_notes(error: BaseException) -> traceback.TracebackException:
    said = traceback.TracebackException.from_exception(error)
    said.__notes__ = None
    return said


def _builtin_of(kind: type[BaseException]) -> Any:
    """Return the class in Python itself that a class of exceptions is derived from."""
    return next(one for one in kind.__mro__ if one.__module__ == "builtins")
