"""Random states and processes of loaders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from raylit.errors import ConfigError
from raylit.runtime.rng import isolated, seed_everything

__all__ = ["isolate_rng", "seed_everything", "suggested_max_num_workers"]


@contextmanager
def isolate_rng(include_cuda: bool = True) -> Iterator[None]:
    """Context in which random numbers may be drawn.

    Afterwards the states of Python, numpy and PyTorch are restored.

    Args:
        include_cuda: False leaves those of GPUs alone, as a forked process must.

    Example:
        >>> with isolate_rng():
        ...     noise = torch.randn(3)
    """
    with isolated(include_cuda):
        yield


def suggested_max_num_workers(local_world_size: int) -> int:
    """Return how many workers a DataLoader should have at most.

    The CPUs that this process may use over the ranks here, less one for the rank.

    Args:
        local_world_size: ranks on this machine.

    Raises:
        ConfigError: there is not even one rank.
    """
    if local_world_size < 1:
        raise ConfigError(
            f"suggested_max_num_workers(local_world_size={local_world_size}): there is at least 1"
            " rank."
        )
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // local_world_size - 1)
