"""Bounds for data from outside: how deep it is nested, and how large it is when written out.

Text of a few hundred bytes can describe billions of values by naming one list many times (aliases
of YAML, the memo of a pickle; https://en.wikipedia.org/wiki/Billion_laughs_attack). Whoever walks
through such data would not come back, so it is measured before.
"""

from __future__ import annotations

from collections.abc import Mapping

MAX_DEPTH = 64
MAX_VALUES = 200_000


class TooLargeError(ValueError):
    """Data is nested too deep, contains itself, or is too large when written out."""


def check_size(value: object, max_values: int = MAX_VALUES, max_depth: int = MAX_DEPTH) -> int:
    """Return how many values nested data has when written out: a list named twice counts twice.

    Each list, mapping and tuple is looked through once, so the time is that of the text, not of the
    data it describes.

    Args:
        value: mappings, lists, tuples and sets of anything.
        max_values: the most it may have.
        max_depth: how deep it may be nested.

    Raises:
        TooLargeError: it has more, or is deeper, or contains itself.

    Example:
        >>> check_size({"a": [1, 2]})
        5
    """
    return _size(value, max_values, max_depth, {})


def _size(
    value: object, max_values: int, depth_left: int, known: dict[int, tuple[int, int]]
) -> int:
    """Count `value`.

    `known` has the size of each part so far, and how deep it was allowed to be.
    """
    if not isinstance(value, (Mapping, list, tuple, set, frozenset)):
        return 1
    if depth_left == 0:
        raise TooLargeError("it is nested too deep, or contains itself")
    # It was counted where less depth was left, so it is not too deep here
    if id(value) in known and known[id(value)][1] <= depth_left:
        return known[id(value)][0]
    if isinstance(value, Mapping):
        parts = [part for item in value.items() for part in item]
    else:
        parts = list(value)
    total = 1
    for part in parts:
        total += _size(part, max_values, depth_left - 1, known)
        if total > max_values:
            raise TooLargeError(f"it has more than {max_values:,} values when written out")
    known[id(value)] = (total, depth_left)
    return total
