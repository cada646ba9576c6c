"""Values that are no plain data, described by where they can be imported from.

These are classes, functions, members of enumerations, and `functools.partial` and dataclasses of
such and of plain data.

Only what comes from torch or from the packages of the class that is loaded is found again: a
checkpoint cannot name any function there is.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import inspect
from typing import Any

Description = dict[str, Any]


def describe(value: Any, cls: type) -> Description | None:
    """Return data from which `restore` makes `value` again, None if there is none that is exact.

    It is plain if what `value` is made of is.

    Args:
        value: a hyperparameter.
        cls: the class of the module or datamodule that has it.
    """
    try:
        description = _describe(value)
        restored = restore(description, cls)
    except (TypeError, ValueError):
        return None
    return description if "plain" not in description and _is_same(restored, value) else None


def restore(description: Description, cls: type) -> Any:
    """Return the value that `describe` described.

    Raises:
        ValueError: it cannot be found, or comes from elsewhere than torch and the packages of
            `cls`.
    """
    if "plain" in description:
        return description["plain"]
    if "partial" in description:
        args = [restore(one, cls) for one in description["args"]]
        return functools.partial(
            restore(description["partial"], cls),
            *args,
            **{k: restore(v, cls) for k, v in description["keywords"].items()},
        )
    found = _find(description["path"], cls)
    if "fields" not in description:
        return found
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"{description['path']} is no dataclass")
    return found(**{name: restore(one, cls) for name, one in description["fields"].items()})


def _describe(value: Any) -> Description:
    if isinstance(value, enum.Enum):
        return {"path": f"{type(value).__module__}:{type(value).__qualname__}.{value.name}"}
    if inspect.isbuiltin(
        value
    ):  # as are torch's own functions; their __qualname__ names a class that cannot be imported
        return {"path": f"{value.__module__}:{value.__name__}"}
    if isinstance(value, type) or inspect.isroutine(value):
        return {"path": f"{value.__module__}:{value.__qualname__}"}
    if isinstance(value, functools.partial):
        keywords = {name: _describe(one) for name, one in value.keywords.items()}
        return {
            "partial": _describe(value.func),
            "args": [_describe(one) for one in value.args],
            "keywords": keywords,
        }
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: _describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return {"path": f"{type(value).__module__}:{type(value).__qualname__}", "fields": fields}
    return {"plain": value}


def _find(path: str, cls: type) -> Any:
    module, _, name = path.partition(":")
    roots = {"torch", *(one.__module__.partition(".")[0] for one in cls.__mro__)} - {"builtins"}
    if module.partition(".")[0] not in roots:
        raise ValueError(f"{path} is neither of torch nor of a package of {cls.__name__}")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path} cannot be imported: {error}") from error
    return found


def _is_same(one: Any, other: Any) -> bool:
    if isinstance(other, functools.partial) and isinstance(one, functools.partial):
        pairs = [
            (one.func, other.func),
            *zip(one.args, other.args, strict=True),
            *((one.keywords[key], other.keywords[key]) for key in other.keywords),
        ]
        return all(_is_same(*pair) for pair in pairs)
    return one is other or (type(one) is type(other) and bool(one == other))
