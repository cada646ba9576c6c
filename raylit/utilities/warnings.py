"""Lightning's path to `raylit.utilities.rank_zero`."""

from raylit.utilities.rank_zero import PossibleUserWarning

__all__ = ["PossibleUserWarning"]
