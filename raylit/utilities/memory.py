"""Memory: letting go of it, and telling whether it has run out."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from raylit.runtime.aliases import Batch

__all__ = ["garbage_collection_cuda", "is_oom_error", "recursive_detach"]

# beside torch.OutOfMemoryError, these texts of a RuntimeError mean that memory has run out
_TEXTS = (
    ("CUDA", "out of memory"),
    ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.",),
    ("DefaultCPUAllocator: can't allocate memory",),
)


def is_oom_error(exception: BaseException) -> bool:
    """Tell whether an exception says that the memory of the GPU or of the computer has run out."""
    return isinstance(exception, RuntimeError) and any(
        all(part in str(exception) for part in text) for text in _TEXTS
    )


def garbage_collection_cuda() -> None:
    """Free objects that nobody refers to, and give the GPU's cached memory back."""
    gc.collect()
    try:
        torch.cuda.empty_cache()
    except RuntimeError as error:  # which it may raise where memory has run out
        if not is_oom_error(error):
            raise


def recursive_detach(in_dict: Batch, to_cpu: bool = False) -> Batch:
    """Return a collection with all tensors in it detached.

    Args:
        in_dict: tensors in any nesting of dicts, lists and tuples.
        to_cpu: whether to copy them to the CPU.

    Example:
        >>> recursive_detach({"loss": torch.ones(1, requires_grad=True)})["loss"].requires_grad
        False
    """
    return tree_map_only(
        Tensor, lambda tensor: tensor.detach().cpu() if to_cpu else tensor.detach(), in_dict
    )
