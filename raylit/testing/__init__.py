"""For tests, yours and ours: the contracts of Callback, Logger and Launcher as suites to subclass, and modules small enough for any test.

Importing it needs nothing beyond raylit; the suites need pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raylit.testing.modules import BoringDataModule, BoringModel, RandomDataset, TinyModel

if TYPE_CHECKING:
    from raylit.testing.callbacks import CallbackConformance
    from raylit.testing.launchers import LauncherConformance
    from raylit.testing.loggers import LoggerConformance

_SUITES = {"CallbackConformance": "callbacks", "LauncherConformance": "launchers", "LoggerConformance": "loggers"}

__all__ = [
    "BoringDataModule",
    "BoringModel",
    "CallbackConformance",
    "LauncherConformance",
    "LoggerConformance",
    "RandomDataset",
    "TinyModel",
]


def __getattr__(name: str) -> Any:
    if name not in _SUITES:
        raise AttributeError(f"module 'raylit.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"raylit.testing.{_SUITES[name]}"), name)
