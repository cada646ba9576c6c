"""Modules that processes of a job import before they unpack it.

Some change the results of other imports, so classes that are found by name need them first.
"""

from __future__ import annotations

import importlib
import os

# For processes that a process starts, which would otherwise say again what it has said.
VARIABLE = "RAYLIT_IMPORTED_BEFOREHAND"

_modules: list[str] = []


def add(module: str) -> bool:
    """Have a module imported first, wherever work of this process goes.

    Returns:
        Whether this is the process that wanted it, rather than one it has sent work to.
    """
    if module not in _modules:
        _modules.append(module)
    said = os.environ.get(VARIABLE, "").split(",")
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*filter(None, said), module]))
    return module not in said


def modules() -> tuple[str, ...]:
    """Return the modules that this process has imported beforehand."""
    return tuple(_modules)


def use(names: tuple[str, ...]) -> None:
    """Import the modules that another process has, before any of its work is unpacked."""
    said = os.environ.get(VARIABLE, "").split(",")
    os.environ[VARIABLE] = ",".join(dict.fromkeys([*filter(None, said), *names]))
    for name in names:
        importlib.import_module(name)
