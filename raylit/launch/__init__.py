"""How the processes of a job are started.

`raylit.launch.on_ray.launcher` is the only place for Ray Train and is imported only when used.
"""

from raylit.launch.base import Launcher
from raylit.launch.local import LocalLauncher

__all__ = ["Launcher", "LocalLauncher"]
