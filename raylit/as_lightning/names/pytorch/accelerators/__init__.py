"""Lightning's names beside those of `raylit.accelerators`."""

from raylit import accelerators
from raylit.as_lightning.beside import names_of
from raylit.as_lightning.refused import NO_XLA, refused

XLAAccelerator = refused("XLAAccelerator", NO_XLA)

__all__ = [*accelerators.__all__, "XLAAccelerator"]

__getattr__ = names_of(__name__, accelerators)
