"""Lightning's path to `raylit.core.hparams` and `raylit.utilities.model_helpers`."""

from raylit.core.hparams import AttributeDict
from raylit.utilities.model_helpers import is_picklable

__all__ = ["AttributeDict", "is_picklable"]
