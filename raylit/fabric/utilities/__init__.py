"""Lightning's place for utilities of Fabric and Trainer; here its names lead to raylit's own."""

from raylit.runtime.batch import move_to as move_data_to_device
from raylit.runtime.lazy import attribute_loader
from raylit.utilities.rank_zero import (
    disable_possible_user_warnings,
    rank_zero_deprecation,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
)
from raylit.utilities.seed import suggested_max_num_workers

__all__ = [
    "disable_possible_user_warnings",
    "move_data_to_device",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "suggested_max_num_workers",
]

__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
