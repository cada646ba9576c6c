"""Lightning's names beside those of `raylit.loggers`."""

from raylit import loggers
from raylit.as_lightning.beside import names_of
from raylit.as_lightning.refused import refused

LitLogger = refused(
    "LitLogger", "It has no logger of Lightning's cloud: MLFlowLogger is where runs are looked at."
)

__all__ = [*loggers.__all__, "LitLogger"]

__getattr__ = names_of(__name__, loggers)
