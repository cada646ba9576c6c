"""Lightning's names beside those of `raylit.fabric.utilities`."""

from raylit.as_lightning.beside import names_of
from raylit.fabric import utilities

__getattr__ = names_of(__name__, utilities)
