"""Lightning's place for which packages are there, and which torch."""

import importlib.metadata
import importlib.util

from packaging.version import Version

_TORCH = Version(importlib.metadata.version("torch").split("+")[0])
_IS_WINDOWS = False
_IS_INTERACTIVE = False


def __getattr__(name: str) -> bool:
    """Tell whether torch is as new as a name such as `_TORCH_GREATER_EQUAL_2_4` says."""
    if name.startswith("_TORCH_GREATER_EQUAL_"):
        wanted = name.removeprefix("_TORCH_GREATER_EQUAL_").replace("_", ".")
        return Version(wanted) <= _TORCH
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
