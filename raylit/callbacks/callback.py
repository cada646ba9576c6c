"""Lightning's path to `raylit.core.callback`."""

from raylit.core.callback import Callback

__all__ = ["Callback"]
