"""Names of a package that are loaded when they are asked for (PEP 562)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any


def attribute_loader(package: str, places: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """Return a `__getattr__` for the package.

    It finds the names in `places`, and modules of the package that nothing has imported yet:
    `pl.callbacks.lr_monitor` works after `import raylit as pl` alone, as it does in Lightning,
    though no module of raylit imports Lightning's paths.

    Args:
        package: the package's `__name__`.
        places: name to the module that has it.

    Example:
        >>> __getattr__ = attribute_loader(__name__, {"Tuner": "raylit.tune"})
    """
    places = places or {}

    def load(name: str) -> Any:
        if name in places:
            found = getattr(importlib.import_module(places[name]), name)
            setattr(sys.modules[package], name, found)  # found without us the next time
            return found
        path = f"{package}.{name}"
        if (
            name.isidentifier()
            and not name.startswith("_")
            and importlib.util.find_spec(path) is not None
        ):
            return importlib.import_module(path)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load


def load_names(package: ModuleType) -> None:
    """Load all public names of a package, so that its classes are found among the subclasses.

    Example:
        >>> load_names(raylit.callbacks)
        >>> "ModelPruning" in [kind.__name__ for kind in raylit.callbacks.Callback.__subclasses__()]
        True
    """
    for name in package.__all__:
        getattr(package, name)
