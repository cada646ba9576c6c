"""Whether arguments are of the plain types that a function annotates."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
from collections.abc import Callable, Collection, Mapping
from typing import SupportsFloat

import numpy as np

from raylit.errors import WrongTypeError

PLAIN = {  # a type as annotations write it, and what its values are called
    "bool": "True or False",
    "int": "a number",
    "float": "a number",
    "str": "a text",
    "os.PathLike[str]": "a path",
}
NONE = "None"
SHOWN = 80  # letters of a value in a message


def check_kinds(
    function: Callable[..., object], given: Mapping[str, object], but: Collection[str] = ()
) -> None:
    """Find out whether arguments are of the plain types that a function annotates.

    Those of other types, such as callbacks, are looked at where they are used.

    Args:
        function: whose arguments they are; its module has `from __future__ import annotations`.
        given: by name; None passes for every one.
        but: those that are left to others.

    Raises:
        WrongTypeError: one is not.

    Example:
        >>> def wait(time_s: float | None = None) -> None: ...
        >>> check_kinds(wait, {"time_s": 3})
    """
    for name, wanted, kinds in _plain_arguments(function):
        value = given.get(name)
        if value is None or name in but:
            continue
        if not any(_is_of(value, kind) for kind in kinds):
            text = repr(value)
            words = " or ".join(dict.fromkeys(PLAIN[kind] for kind in kinds))
            raise WrongTypeError(
                f"{name}={text if len(text) <= SHOWN else f'{text[:SHOWN]}...'}: give"
                f" {words}{', or None' if NONE in wanted else ''}, not a value of type"
                f" {type(value).__name__}."
            )


@functools.cache  # reading the signature took a tenth of a fit of one step
def _plain_arguments(function: Callable[..., object]) -> list[tuple[str, list[str], list[str]]]:
    """Return the arguments of plain types alone: name, the types, and those but for None."""
    annotated = (
        (name, str(parameter.annotation).split(" | "))
        for name, parameter in inspect.signature(function).parameters.items()
    )
    return [
        (name, wanted, [kind for kind in wanted if kind != NONE])
        for name, wanted in annotated
        if {*wanted} <= {*PLAIN, NONE}
    ]


def _is_of(value: object, kind: str) -> bool:
    if kind == "bool":  # also 0 and 1, and what numpy makes of them
        return isinstance(value, (numbers.Integral, np.bool_)) and value in (0, 1)
    if kind in ("int", "float"):  # whether it has to be whole is said with its range
        return isinstance(value, SupportsFloat) and not isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str)
    return isinstance(value, os.PathLike) and isinstance(os.fspath(value), str)
