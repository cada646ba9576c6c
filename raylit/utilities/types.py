"""The types that Lightning names, for annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from raylit.core.optimizer import LRSchedulerConfig
from raylit.runtime.aliases import Loaders

STEP_OUTPUT = Tensor | Mapping[str, Any] | None
EVAL_DATALOADERS = TRAIN_DATALOADERS = Loaders
LRSchedulerTypeUnion = LRScheduler | ReduceLROnPlateau
LRSchedulerPLType = LRSchedulerTypeUnion
LRSchedulerType = type[LRScheduler] | type[ReduceLROnPlateau]
LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)


class LRSchedulerConfigType(TypedDict, total=False):
    """A scheduler and when it is stepped, as `configure_optimizers` returns it."""

    scheduler: LRSchedulerTypeUnion
    name: str | None
    interval: str
    frequency: int
    reduce_on_plateau: bool
    monitor: str | None
    strict: bool


class OptimizerLRSchedulerConfig(TypedDict):
    """An optimizer with its scheduler, as `configure_optimizers` returns it."""

    optimizer: Optimizer
    lr_scheduler: NotRequired[LRSchedulerTypeUnion | LRSchedulerConfigType]
    monitor: NotRequired[str]


class OptimizerConfig(TypedDict):
    """An optimizer, as `configure_optimizers` returns it."""

    optimizer: Optimizer


OptimizerLRScheduler = Any

__all__ = [
    "EVAL_DATALOADERS",
    "STEP_OUTPUT",
    "TRAIN_DATALOADERS",
    "LRSchedulerConfig",
    "LRSchedulerConfigType",
    "LRSchedulerPLType",
    "LRSchedulerType",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "OptimizerConfig",
    "OptimizerLRScheduler",
    "OptimizerLRSchedulerConfig",
]
