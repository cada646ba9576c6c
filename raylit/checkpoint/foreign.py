"""The part of a checkpoint that holds objects, such as users put in: pickled, and kept apart.

All else in a file is tensors and plain data. Objects of other kinds stand pickled under
`raylit.foreign`, as bytes that `torch.load(weights_only=True)` hands over without looking into
them. Only `weights_only=False`, which lets a file run code anyway, unpickles them and puts each
back in its place.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from raylit.checkpoint.plain import to_plain

if TYPE_CHECKING:
    from raylit.checkpoint.format import MapLocation
    from raylit.runtime.aliases import CheckpointDict

Place = tuple[Any, ...]  # the keys that lead to an object, one within the other
Key = TypeVar("Key")
OWN = "raylit"
PART = "foreign"


@dataclass(slots=True)
class SplitCheckpoint:
    """A checkpoint, taken apart.

    Attributes:
        plain: what is tensors and plain data.
        objects: the rest, by place.
        refused: of these, what cannot be pickled, and why.
    """

    plain: CheckpointDict
    objects: dict[Place, object] = field(default_factory=dict)
    refused: dict[Place, str] = field(default_factory=dict)


def split(checkpoint: Mapping[str, object]) -> SplitCheckpoint:
    """Return the plain part of a checkpoint, with the objects pickled in a part of its own."""
    found = SplitCheckpoint({})
    found.plain = _plain_part(checkpoint, (), found.objects)
    if found.objects:
        try:
            # All at once, so that an object that stands in two places stays one
            pickled = _pickled(list(found.objects.values()))
        except Exception:  # pickling runs the code of users' classes
            for place, value in list(found.objects.items()):
                try:
                    _pickled([value])
                except Exception as error:  # as above
                    found.refused[place] = f"{type(error).__name__}: {error}"
                    del found.objects[place]
            pickled = _pickled(list(found.objects.values()))
    if found.objects:
        places = [list(place) for place in found.objects]
        own = found.plain.setdefault(OWN, {})
        own[PART] = {"places": places, "pickled": pickled}
    return found


def _plain_part(
    values: Mapping[Key, object], within: Place, objects: dict[Place, object]
) -> dict[Key, Any]:
    plain: dict[Key, object] = {}
    for key in values:
        value = values[key]
        try:
            plain[to_plain(key)] = to_plain(value)
        except TypeError:
            place = (*within, key)
            # What is plain beside an object stays readable; `places` names the way by keys
            if isinstance(value, dict) and all(_is_simple(one) for one in value):
                plain[key] = _plain_part(value, place, objects)
            else:
                objects[place] = value
    return plain


def _is_simple(key: object) -> bool:
    return isinstance(key, (str, int))


def _pickled(values: list[object]) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)  # rather than pickle, so that tensors find the device they go to
    return buffer.getvalue()


def put_back(checkpoint: CheckpointDict, map_location: MapLocation = None) -> None:
    """Unpickle the objects in a checkpoint, and put each back in its place.

    This runs code from the file: only for those who said `weights_only=False`.
    """
    own = checkpoint.get(OWN) if isinstance(checkpoint, dict) else None
    part = own.pop(PART, None) if isinstance(own, dict) else None
    if part is None:
        return
    values = torch.load(io.BytesIO(part["pickled"]), map_location=map_location, weights_only=False)
    for place, value in zip(part["places"], values, strict=True):
        inner = checkpoint
        for key in place[:-1]:
            inner = inner.setdefault(key, {})
        inner[place[-1]] = value


def places(checkpoint: Mapping[str, object]) -> list[Place]:
    """Return where a checkpoint has objects that are still pickled."""
    own = checkpoint.get(OWN)
    part = own.get(PART) if isinstance(own, Mapping) else None
    found = part.get("places") if isinstance(part, Mapping) else None
    if not isinstance(found, list):
        return []
    return [tuple(place) for place in found if isinstance(place, (list, tuple)) and place]


def name_of(place: Place) -> str:
    """Return a place as a dotted name."""
    return ".".join(str(key) for key in place)


@contextmanager
def explaining(checkpoint: Mapping[str, object]) -> Iterator[None]:
    """Context in which a KeyError of user code reading a checkpoint names the pickled objects."""
    try:
        yield
    except KeyError as error:
        left = places(checkpoint)
        if left:
            error.add_note(
                f"(raylit) The checkpoint holds objects under {', '.join(map(name_of, left))},"
                " which only running code from the file would bring back. If you wrote it yourself"
                " and trust it, pass weights_only=False."
            )
        raise
