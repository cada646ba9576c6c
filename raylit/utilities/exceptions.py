"""Lightning's place for its exceptions."""

from raylit.errors import ConfigError as MisconfigurationException
from raylit.errors import Terminated as SIGTERMException

__all__ = ["MisconfigurationException", "SIGTERMException"]
