"""Modules that have Lightning's names beside those of a module of raylit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

from raylit.as_lightning.finder import NAMES


def names_of(package: str, *modules: ModuleType) -> Callable[[str], object]:
    """Return a `__getattr__` that finds modules of Lightning's, and names in modules of raylit.

    Args:
        package: the `__name__` of the module that has it.
        modules: where names are looked for, in turn.
    """
    lightning = package.replace(NAMES, "lightning")

    def load(name: str) -> object:
        has_own = not name.startswith("__") and is_package and find_spec(f"{package}.{name}")
        if has_own:
            return importlib.import_module(f"{lightning}.{name}")
        for module in modules:
            try:
                return getattr(module, name)
            except AttributeError:
                continue
        if not name.startswith("__"):
            try:
                return importlib.import_module(f"{lightning}.{name}")
            except ModuleNotFoundError:
                pass
        raise AttributeError(
            f"module {lightning!r} has no attribute {name!r}: raylit, which stands in for"
            " Lightning, has none like it"
        )

    spec = find_spec(package)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return load
