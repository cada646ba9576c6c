"""Lightning's path to `raylit.utilities.model_helpers`."""

from raylit.utilities.model_helpers import find_shared_parameters, set_shared_parameters

__all__ = ["find_shared_parameters", "set_shared_parameters"]
