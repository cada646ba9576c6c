"""Lightning's place for functions that act on rank 0 alone."""

from __future__ import annotations

from raylit.as_lightning.beside import names_of
from raylit.utilities import rank_zero

__all__ = ["rank_prefixed_message", *rank_zero.__all__]

__getattr__ = names_of(__name__, rank_zero)


def rank_prefixed_message(message: str, rank: int | None) -> str:
    """Return a message with the rank it is of in front, if there is one."""
    return message if rank is None else f"[rank: {rank}] {message}"
