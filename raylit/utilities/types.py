"""The types that Lightning names, for annotations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

STEP_OUTPUT = Tensor | Mapping[str, Any] | None
EVAL_DATALOADERS = TRAIN_DATALOADERS = OptimizerLRScheduler = Any
