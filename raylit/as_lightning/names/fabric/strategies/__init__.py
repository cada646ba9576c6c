"""Lightning's place for strategies of its Fabric; they are the Trainer's here."""

from raylit.as_lightning.beside import names_of
from raylit.as_lightning.names.pytorch import strategies

__getattr__ = names_of(__name__, strategies)
