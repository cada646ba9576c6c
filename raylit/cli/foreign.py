"""Class paths of Lightning in configs, read as raylit's."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from raylit.errors import foreign_hint
from raylit.runtime.aliases import PlainData
from raylit.runtime.messages import info

# jsonargparse has one loader of YAML for all parsers in a process, Lightning's own among them.
_is_read: ContextVar[bool] = ContextVar("_is_read", default=False)
PREFIXES = ("lightning.pytorch.", "pytorch_lightning.", "lightning.")
_said: set[str] = set()


class Parser(ArgumentParser):
    """A parser for whose configs and flags the classes of Lightning are raylit's."""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Read flags, and the config files among them."""
        with _reading():
            return super().parse_args(*args, **kwargs)

    def parse_object(self, *args: object, **kwargs: object) -> Namespace:
        """Read plain data."""
        with _reading():
            read: Namespace = super().parse_object(*args, **kwargs)
            return read

    def parse_string(self, *args: object, **kwargs: object) -> Namespace:
        """Read the text of a config."""
        with _reading():
            read: Namespace = super().parse_string(*args, **kwargs)
            return read

    def parse_path(self, *args: object, **kwargs: object) -> Namespace:
        """Read a config file."""
        with _reading():
            read: Namespace = super().parse_path(*args, **kwargs)
            return read

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End, or raise, with a word on classes of the user's that are derived from Lightning's."""
        hints: dict[str, str] = {}
        for name in re.findall(r"\w+(?:\.\w+)+", message):
            module, _, attribute = name.rpartition(".")
            if hint := foreign_hint(getattr(sys.modules.get(module), attribute, None)):
                hints[name] = f"{name} is refused.{hint}"
        super().error("\n".join([message, *hints.values()]), ex)


@contextmanager
def _reading() -> Iterator[None]:
    token = _is_read.set(True)
    try:
        yield
    finally:
        _is_read.reset(token)


def as_read(values: object) -> object:
    """Return the values that jsonargparse has read; for raylit's parser, with raylit's classes."""
    return as_own(values) if _is_read.get() else values


def as_own(values: object) -> PlainData:
    """Return the values of a config, with raylit's class in the place of one of Lightning's.

    A class is replaced only where raylit has one of this name under the same path; others stay, and
    are refused when the config is checked. Each replacement is reported once.
    """
    if isinstance(values, list):
        return [as_own(one) for one in values]
    if not isinstance(values, dict):
        return values
    return {
        key: own_path(value) if key == "class_path" else as_own(value)
        for key, value in values.items()
    }


def own_path(name: object) -> object:
    """Return raylit's name of a class of Lightning; any other name as it is."""
    prefix = next((one for one in PREFIXES if str(name).startswith(one)), None)
    if prefix is None:
        return name
    own = f"raylit.{str(name).removeprefix(prefix)}"
    if not _exists(own):
        return name
    if own not in _said:
        _said.add(own)
        info(f"{name} is read as {own}.")
    return own


@lru_cache(maxsize=256)
def _exists(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False
