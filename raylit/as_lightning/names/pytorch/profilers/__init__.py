"""Lightning's names beside those of `raylit.profilers`."""

from raylit import profilers
from raylit.as_lightning.beside import names_of
from raylit.as_lightning.refused import NO_XLA, refused

XLAProfiler = refused("XLAProfiler", NO_XLA)

__all__ = [*profilers.__all__, "XLAProfiler"]

__getattr__ = names_of(__name__, profilers)
