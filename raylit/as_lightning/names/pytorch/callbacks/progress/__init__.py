"""Lightning's place for progress bars."""

from raylit.as_lightning.beside import names_of
from raylit.callbacks import Bar as ProgressBar
from raylit.callbacks import progress

__all__ = ["ProgressBar"]

__getattr__ = names_of(__name__, progress)
