"""For tests, yours and ours.

The contracts of Callback, Logger and Launcher as suites to subclass, and modules small enough for
any test.

Importing it needs nothing beyond raylit; the suites need pytest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader
from raylit.testing.modules import BoringDataModule, BoringModel, RandomDataset, TinyModel

if TYPE_CHECKING:
    from raylit.testing.callbacks import CallbackConformance
    from raylit.testing.launchers import LauncherConformance
    from raylit.testing.loggers import LoggerConformance

_SUITES = {
    "CallbackConformance": "raylit.testing.callbacks",
    "LauncherConformance": "raylit.testing.launchers",
    "LoggerConformance": "raylit.testing.loggers",
}

__all__ = [
    "BoringDataModule",
    "BoringModel",
    "CallbackConformance",
    "LauncherConformance",
    "LoggerConformance",
    "RandomDataset",
    "TinyModel",
]

__getattr__ = attribute_loader(__name__, _SUITES)
