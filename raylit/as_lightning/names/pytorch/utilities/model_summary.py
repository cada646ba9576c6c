"""Lightning's names beside those of `raylit.utilities.model_summary`."""

from __future__ import annotations

from raylit.as_lightning.beside import names_of
from raylit.runtime.summary import Layer, count, shape_of
from raylit.utilities import model_summary

LayerSummary = Layer
get_human_readable_count = count
UNKNOWN_SIZE = "?"

__all__ = [
    *model_summary.__all__,
    "UNKNOWN_SIZE",
    "LayerSummary",
    "get_human_readable_count",
    "parse_batch_shape",
]

__getattr__ = names_of(__name__, model_summary)


def parse_batch_shape(batch: object) -> object:
    """Return the shape of a batch, or of the items of a list."""
    found = shape_of(batch)
    return UNKNOWN_SIZE if found is None else found
