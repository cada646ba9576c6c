"""Lightning's names beside those of `raylit.fabric`."""

from raylit import fabric
from raylit.as_lightning.beside import names_of
from raylit.checkpoint.format import LIGHTNING_FORMAT as __version__
from raylit.runtime.rng import seed_everything

__all__ = ["__version__", "seed_everything"]

__getattr__ = names_of(__name__, fabric)
