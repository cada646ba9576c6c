"""How a fit is set up, in words and numbers: the Trainer, optimizers, schedulers and the seed.

For loggers that show it beside the hyperparameters, so that two runs can be told apart.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from raylit.engine.run import Run

# Of the Trainer's arguments: what is shown elsewhere, or differs from place to place
NOT_SHOWN = frozenset(
    {"logger", "default_root_dir", "storage_path", "enable_progress_bar", "enable_model_summary"}
)
# Of the arguments of an optimizer: how it is computed and not what
OF_SPEED = frozenset({"foreach", "fused", "capturable", "differentiable"})


def describe(run: Run) -> dict[str, object]:
    """Return the settings of a fit, nested, as plain values."""
    trainer = run.trainer
    # As they turned out: `strategy="auto"` or `num_workers=(1, 4)` does not tell what ran
    settled = {
        "strategy": type(run.strategy).__name__.removesuffix("Strategy").lower(),
        "precision": str(trainer.precision),
        "world_size": run.world.size,
        "accelerator": run.device.type,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
    }
    given = {
        name: _plain(value)
        for name, value in trainer.changed_arguments.items()
        if name not in NOT_SHOWN
    }
    found: dict[str, object] = {"trainer": given | settled}
    for number, optimizer in enumerate(run.optimizers):
        name = "optimizer" if number == 0 else f"optimizer_{number}"
        defaults = getattr(optimizer, "defaults", {})
        found[name] = {"name": type(optimizer).__name__} | {
            key: _plain(value)
            for key, value in defaults.items()
            if key not in OF_SPEED and value is not None
        }
    for number, config in enumerate(run.schedulers):
        name = "lr_scheduler" if number == 0 else f"lr_scheduler_{number}"
        found[name] = _scheduler(config.scheduler) | {"interval": config.interval}
    return found


def _scheduler(scheduler: object) -> dict[str, object]:
    """Return the numbers that a scheduler was made with, as far as it has kept them."""
    # Other than optimizers, schedulers keep no `defaults`: each has attributes of its own choice
    names = inspect.signature(type(scheduler).__init__).parameters.keys()
    kept = {name: vars(scheduler)[name] for name in names if name in vars(scheduler)}
    return {"name": type(scheduler).__name__} | {
        name: _plain(value)
        for name, value in kept.items()
        if name not in ("optimizer", "last_epoch", "verbose") and value is not None
    }


def _plain(value: object) -> object:
    """Return a value as it is shown: numbers and texts as they are, of an object its class."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return value.item()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, type) or callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return type(value).__name__
