"""Lightning's names beside those of `raylit.strategies`."""

from raylit import strategies
from raylit.as_lightning.beside import names_of

__getattr__ = names_of(__name__, strategies)
