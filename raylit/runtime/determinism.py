"""Deterministic algorithms and cuDNN's benchmark, which PyTorch keeps for the whole process."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from raylit.errors import ConfigError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def apply(deterministic: bool | str | None, benchmark: bool | None) -> Callable[[], None]:
    """Set both for this process, and return the function that sets them back.

    Args:
        deterministic: True: only deterministic algorithms; `warn`: warn where there is none; None:
            as it is set.
        benchmark: whether cuDNN looks for the fastest algorithm; None: as it is set, False if
            `deterministic`.

    Raises:
        ConfigError: `deterministic` is none of these.
    """
    if deterministic not in (None, True, False, "warn"):
        raise ConfigError(f"deterministic={deterministic!r}: give True, False or 'warn'.")
    if deterministic is None and benchmark is None:
        return _nothing
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark_before = torch.backends.cudnn.benchmark
    workspace_before = os.environ.get(WORKSPACE)
    if deterministic is not None:
        torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
        if deterministic:
            # cuBLAS is deterministic only with a workspace of fixed size
            os.environ[WORKSPACE] = ":4096:8"
    if benchmark is None and deterministic:
        benchmark = False
    if benchmark is not None:
        torch.backends.cudnn.benchmark = bool(benchmark)

    def undo() -> None:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark_before
        os.environ.pop(WORKSPACE, None)
        if workspace_before is not None:
            os.environ[WORKSPACE] = workspace_before

    return undo


def _nothing() -> None:
    """Undo nothing, where nothing was set."""
