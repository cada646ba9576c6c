"""Lightning's names beside those of `raylit.trainer`."""

from raylit import trainer
from raylit.as_lightning.beside import names_of

__getattr__ = names_of(__name__, trainer)
