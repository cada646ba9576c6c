"""Lightning's names beside those of `raylit.utilities.memory`."""

from __future__ import annotations

from raylit.as_lightning.beside import names_of
from raylit.utilities import memory
from raylit.utilities.memory import is_oom_error

__all__ = [
    *memory.__all__,
    "is_cuda_out_of_memory",
    "is_cudnn_snafu",
    "is_out_of_cpu_memory",
]

__getattr__ = names_of(__name__, memory)


def is_cuda_out_of_memory(exception: BaseException) -> bool:
    """Tell whether a GPU's memory has run out."""
    return is_oom_error(exception) and "CUDA" in str(exception)


def is_cudnn_snafu(exception: BaseException) -> bool:
    """Tell whether cuDNN says so in its own way."""
    return is_oom_error(exception) and "CUDNN_STATUS_NOT_SUPPORTED" in str(exception)


def is_out_of_cpu_memory(exception: BaseException) -> bool:
    """Tell whether the computer's memory has run out."""
    return is_oom_error(exception) and "DefaultCPUAllocator" in str(exception)
