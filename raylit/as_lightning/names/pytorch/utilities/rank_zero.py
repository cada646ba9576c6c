"""Lightning's place for functions that act on rank 0 alone, with `rank_prefixed_message`."""

from raylit.as_lightning.beside import names_of
from raylit.as_lightning.names.fabric.utilities.rank_zero import rank_prefixed_message
from raylit.utilities import rank_zero

__all__ = ["rank_prefixed_message", *rank_zero.__all__]

__getattr__ = names_of(__name__, rank_zero)
