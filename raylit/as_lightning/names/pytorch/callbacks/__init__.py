"""Lightning's names beside those of `raylit.callbacks`."""

from raylit import callbacks
from raylit.as_lightning.beside import names_of

__getattr__ = names_of(__name__, callbacks)
