"""Configs of a LightningCLI with fixed classes, read by `raylit` when it is told the classes.

A script's `LightningCLI(Net, Data)` writes `model: {width: 16}`, since it knows the class. With
`--model main.Net` the command knows it too, and takes the mapping as the arguments of the class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from raylit.runtime.aliases import PlainData

KEYS = ("model", "data")
_told: ContextVar[Mapping[str, str] | None] = ContextVar("_told", default=None)
_is_next: ContextVar[bool] = ContextVar("_is_next", default=False)


class ConfigFile(ActionConfigFile):
    """The flag --config, whose file is a whole config: the classes that were told apply to it."""

    def __call__(self, *args: object, **kwargs: object) -> None:  # noqa: D102
        token = _is_next.set(True)
        try:
            super().__call__(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            _is_next.reset(token)


def classes_of(args: Sequence[str]) -> dict[str, str]:
    """Return the classes that flags such as `--model main.Net` name, by key."""
    found: dict[str, str] = {}
    for index, arg in enumerate(args):
        flag, equals, value = arg.partition("=")
        key = flag.removeprefix("--")
        if flag.startswith("--") and key in KEYS:
            name = value if equals else "".join(args[index + 1 : index + 2])
            if _is_path(name):  # a mapping gives arguments of the class that is told
                found[key] = name
    return found


@contextmanager
def telling(classes: Mapping[str, str]) -> Iterator[None]:
    """Let configs that are read in a block leave out the classes."""
    token = _told.set(classes)
    try:
        yield
    finally:
        _told.reset(token)


def read_next(values: object) -> object:
    """Return values read by jsonargparse, with the told classes if they are a whole config."""
    if not _is_next.get():
        return values
    _is_next.set(False)  # what the config names is read next, and is none
    return with_classes(values, _told.get())


def with_classes(values: object, classes: Mapping[str, str] | None) -> PlainData:
    """Return a config with the told class added wherever it gives arguments alone."""
    if not classes or not isinstance(values, dict):
        return values
    whole = dict(values)
    for key, name in classes.items():
        given = whole.get(key)
        if isinstance(given, dict) and not {"class_path", "init_args", "dict_kwargs"} & set(given):
            whole[key] = {"class_path": name, "init_args": given}
    return whole


def _is_path(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))
