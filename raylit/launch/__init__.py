"""How the processes of a job are started.

`raylit.launch.on_ray.launcher` is the only place for Ray Train and is imported only when used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader

if TYPE_CHECKING:
    from raylit.launch.base import Launcher
    from raylit.launch.local import LocalLauncher

__all__ = ["Launcher", "LocalLauncher"]

# Loaded when asked for: the engine, which only the processes that do the work need.
__getattr__ = attribute_loader(
    __name__, {"Launcher": "raylit.launch.base", "LocalLauncher": "raylit.launch.local"}
)
