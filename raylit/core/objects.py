"""Objects that users put into a checkpoint, described as data where that is exact.

They are pickled too (see `raylit.checkpoint.foreign`), for readers that let code run; the
description brings them back for all others, through the gate of `raylit.core.importable`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raylit.checkpoint.plain import plain_items
from raylit.core import importable
from raylit.runtime.aliases import CheckpointDict

OWN, PART = "raylit", "objects"  # where a checkpoint has the descriptions: [[place, description]]
Place = tuple[object, ...]


def describe_all(objects: Mapping[Place, object], cls: type) -> list[list[Any]]:
    """Return the places and descriptions of those objects that have one.

    Args:
        objects: by the keys that lead to them.
        cls: the class of the module whose checkpoint it is.
    """
    found = []
    for place, value in objects.items():
        described = importable.describe(value, cls)
        plain = plain_items({"one": described})[0] if described is not None else {}
        found += [[list(place), one] for one in plain.values()]
    return found


def places(checkpoint: Mapping[str, object]) -> set[Place]:
    """Return where a checkpoint has descriptions of objects."""
    own = checkpoint.get(OWN)
    found = own.get(PART, []) if isinstance(own, dict) else []
    return {tuple(one[0]) for one in found if isinstance(one, list) and isinstance(one[0], list)}


def put_back(checkpoint: CheckpointDict, cls: type) -> None:
    """Make the described objects again, and put each in its place, unless something stands there.

    An object that cannot be made is left out: the code that needs it says so.
    """
    own = checkpoint.get(OWN)
    found = own.get(PART, []) if isinstance(own, dict) else []
    for one in found if isinstance(found, list) else []:
        try:
            place, description = one
            *outer, last = place
            inner = checkpoint
            for key in outer:
                inner = inner.setdefault(key, {})
            if last not in inner:
                inner[last] = importable.restore(description, cls)
        except Exception:  # the constructor of any class may run here
            continue
