"""Names that users import from `lightning.pytorch.utilities`; here they lead to where the things live."""

from raylit.data import CombinedLoader
from raylit.utilities.grad_norm import grad_norm
from raylit.utilities.rank_zero import rank_zero_deprecation, rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = ["CombinedLoader", "grad_norm", "rank_zero_deprecation", "rank_zero_info", "rank_zero_only", "rank_zero_warn"]
