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
        attributes = _in_slots(error) | (state[0] if state else {})
        parts: bytes = cloudpickle.dumps((type(error), arguments, attributes))
        str(unpacked(parts))
    except Exception:  # whatever the user's own attributes raise when pickled
        said = "".join(_without_notes(error).format_exception_only()).strip()
        return packed(
            LaunchError(f"{said} (this stands for the original exception, which cannot be pickled)")
        )
    return parts


def unpacked(parts: bytes) -> BaseException:
    """Return the exception that `packed` made these bytes of."""
    kind, arguments, attributes = cloudpickle.loads(parts)
    builtin = _builtin_of(kind)
    # Neither the user's __new__ nor __init__; but those of the class in Python itself, which set
    # what is not among the attributes, such as the code of SystemExit
    error: BaseException
    try:
        error = builtin.__new__(kind, *arguments)
    except TypeError:  # a class made in C stands between the two, such as psycopg2.Error
        error = kind.__new__(kind, *arguments)
    with contextlib.suppress(TypeError):
        builtin.__init__(error, *arguments)
    error.__setstate__(attributes)
    return error


def _without_notes(error: BaseException) -> traceback.TracebackException:
    said = traceback.TracebackException.from_exception(error)
    said.__notes__ = None
    return said


def _in_slots(error: BaseException) -> dict[str, object]:
    """Return the attributes that the classes of an exception keep in `__slots__`."""
    found = {}
    for cls in type(error).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            stored = f"_{cls.__name__.lstrip('_')}{name}" if _is_mangled(name) else name
            if name not in ("__dict__", "__weakref__") and hasattr(error, stored):
                found[stored] = getattr(error, stored)
    return found


def _is_mangled(name: str) -> bool:
    return name.startswith("__") and not name.endswith("__")


def _builtin_of(kind: type[BaseException]) -> Any:
    """Return the class in Python itself that makes objects of a class of exceptions.

    Of several that it is derived from, such as RuntimeError and FileNotFoundError, it is the one
    whose objects have most in them: only its `__new__` makes those of the others too.
    """
    own = [one for one in kind.__mro__ if one.__module__ == "builtins"]
    return max(own, key=lambda one: one.__basicsize__)
