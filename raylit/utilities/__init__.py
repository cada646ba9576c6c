"""Names that users import from `lightning.pytorch.utilities`.

Here they lead to where the things live.
"""

from raylit.core.hparams import AttributeDict
from raylit.core.states import LightningEnum
from raylit.data import CombinedLoader
from raylit.runtime.batch import move_to as move_data_to_device
from raylit.runtime.lazy import attribute_loader
from raylit.utilities import (
    combined_loader,
    exceptions,
    memory,
    model_helpers,
    rank_zero,
    seed,
    types,
)
from raylit.utilities.grads import GradClipAlgorithmType, grad_norm
from raylit.utilities.model_helpers import (
    find_shared_parameters,
    is_picklable,
    measure_flops,
    set_shared_parameters,
)
from raylit.utilities.rank_zero import (
    disable_possible_user_warnings,
    rank_zero_deprecation,
    rank_zero_info,
    rank_zero_only,
    rank_zero_warn,
)
from raylit.utilities.seed import suggested_max_num_workers

__all__ = [
    "AttributeDict",
    "CombinedLoader",
    "GradClipAlgorithmType",
    "LightningEnum",
    "combined_loader",
    "disable_possible_user_warnings",
    "exceptions",
    "find_shared_parameters",
    "grad_norm",
    "is_picklable",
    "measure_flops",
    "memory",
    "model_helpers",
    "move_data_to_device",
    "rank_zero",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "seed",
    "set_shared_parameters",
    "suggested_max_num_workers",
    "types",
]

__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
