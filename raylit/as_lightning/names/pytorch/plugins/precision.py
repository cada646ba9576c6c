"""Lightning's names beside those of `raylit.plugins.precision`."""

from raylit.as_lightning.beside import names_of
from raylit.as_lightning.names.pytorch import plugins
from raylit.plugins import precision

__getattr__ = names_of(__name__, precision, plugins)
