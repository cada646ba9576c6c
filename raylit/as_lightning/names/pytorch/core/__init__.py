"""Lightning's names beside those of `raylit.core`."""

from raylit import core
from raylit.as_lightning.beside import names_of

__getattr__ = names_of(__name__, core)
