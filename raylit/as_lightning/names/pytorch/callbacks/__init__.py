"""Lightning's names beside those of `raylit.callbacks`; its ProgressBar draws nothing."""

from raylit import callbacks
from raylit.as_lightning.beside import names_of
from raylit.callbacks import Bar

ProgressBar = Bar

__all__ = [name for name in callbacks.__all__ if name != "Bar"]

__getattr__ = names_of(__name__, callbacks)
