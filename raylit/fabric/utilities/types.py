"""Lightning's place for names of types that both of its halves use."""

import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim import Optimizer

from raylit.runtime.aliases import StateDict
from raylit.utilities.types import LRSchedulerTypeTuple, LRSchedulerTypeUnion

_PATH = str | Path | os.PathLike[str]
_DEVICE = torch.device | str | int
_MAP_LOCATION_TYPE = Any
_PARAMETERS = Any
LRScheduler = torch.optim.lr_scheduler.LRScheduler
ReduceLROnPlateau = torch.optim.lr_scheduler.ReduceLROnPlateau
Optimizable = Optimizer
Steppable = Optimizer
ReduceOp = Any


class _Stateful(Protocol):
    """An object that keeps its own state in checkpoints."""

    def state_dict(self) -> StateDict:
        """Return the state."""

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Bring it back."""


__all__ = [
    "LRScheduler",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "Optimizable",
    "ReduceLROnPlateau",
    "Steppable",
]
