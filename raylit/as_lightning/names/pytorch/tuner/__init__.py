"""Lightning's place for its Tuner."""

from raylit import tune
from raylit.as_lightning.beside import names_of
from raylit.tune import Tuner

__all__ = ["Tuner"]

__getattr__ = names_of(__name__, tune)
