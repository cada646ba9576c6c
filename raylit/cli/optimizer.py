"""The keys `optimizer` and `lr_scheduler` of a config, for modules that leave `configure_optimizers` to it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from raylit.errors import ConfigError
from raylit.hooks import is_overridden
from raylit.messages import info
from raylit.module import LightningModule


class ReduceLROnPlateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
    """PyTorch's scheduler of that name, told by the config which metric it watches.

    Args:
        optimizer: whose learning rate is reduced.
        monitor: the metric, such as `val_loss`.
        args: as in `torch.optim.lr_scheduler.ReduceLROnPlateau`.
        kwargs: likewise.
    """

    def __init__(self, optimizer: Optimizer, monitor: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(optimizer, *args, **kwargs)
        self.monitor = monitor


def give_optimizer(module: LightningModule, optimizer: Mapping[str, Any] | None, lr_scheduler: Mapping[str, Any] | None) -> None:
    """Give the module a `configure_optimizers` that makes what the config describes; none if it describes nothing.

    Args:
        module: its own method, if it has one, is replaced.
        optimizer: class_path and init_args, or None.
        lr_scheduler: likewise.

    Raises:
        ConfigError: a scheduler was given without an optimizer, or ReduceLROnPlateau without a metric.
    """
    if optimizer is None:
        if lr_scheduler is not None:
            raise ConfigError(f"lr_scheduler is {_name(lr_scheduler)}, but the config has no optimizer for it. Give one: --optimizer Adam.")
        return
    if lr_scheduler is not None and _name(lr_scheduler) == "ReduceLROnPlateau" and "monitor" not in (lr_scheduler.get("init_args") or {}):
        raise ConfigError(
            "lr_scheduler: PyTorch's ReduceLROnPlateau does not say which metric it watches. Use class_path: raylit.cli.ReduceLROnPlateau with monitor."
        )
    if is_overridden("configure_optimizers", module, LightningModule):
        info(f"The config's optimizer, {_name(optimizer)}, is used instead of {type(module).__name__}.configure_optimizers.")
    module.configure_optimizers = functools.partial(_configure, module, _plain(optimizer), _plain(lr_scheduler))  # type: ignore[method-assign]


def _configure(module: LightningModule, optimizer: dict[str, Any], lr_scheduler: dict[str, Any] | None) -> Any:
    made = _class(optimizer)(module.parameters(), **(optimizer.get("init_args") or {}))
    if lr_scheduler is None:
        return made
    scheduler = _class(lr_scheduler)(made, **(lr_scheduler.get("init_args") or {}))
    if isinstance(scheduler, ReduceLROnPlateau):
        return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor}}
    return [made], [scheduler]


def _class(spec: Mapping[str, Any]) -> Any:
    module, _, name = spec["class_path"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def _name(spec: Mapping[str, Any]) -> str:
    return str(spec["class_path"]).rpartition(".")[2]


def _plain(spec: Any) -> Any:
    return spec.as_dict() if hasattr(spec, "as_dict") else spec
