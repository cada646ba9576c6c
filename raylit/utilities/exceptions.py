"""Lightning's place for the exception about wrong settings."""

from raylit.errors import ConfigError as MisconfigurationException

__all__ = ["MisconfigurationException"]
