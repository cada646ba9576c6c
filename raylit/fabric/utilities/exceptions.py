"""Lightning's path to `raylit.errors`."""

from raylit.errors import ConfigError as MisconfigurationException

__all__ = ["MisconfigurationException"]
