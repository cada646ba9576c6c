"""Lightning's place for plugins of its Fabric; they are the Trainer's here."""

from raylit.as_lightning.beside import names_of
from raylit.as_lightning.names.pytorch import plugins

__getattr__ = names_of(__name__, plugins)
