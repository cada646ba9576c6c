"""Optimizers and schedulers in a config.

Types for arguments that take one, and modules that leave `configure_optimizers` to the config.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from raylit.core.hooks import is_overridden
from raylit.core.module import LightningModule
from raylit.errors import ConfigError
from raylit.runtime.aliases import PlainData
from raylit.runtime.messages import info


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


LRSchedulerTypeTuple = (LRScheduler, ReduceLROnPlateau)
LRSchedulerTypeUnion = LRScheduler | ReduceLROnPlateau
LRSchedulerType = type[LRScheduler] | type[ReduceLROnPlateau]

# For arguments of a module that take an optimizer or a scheduler from the config, to be called in
# `configure_optimizers` with what it lacks.
OptimizerCallable = Callable[[Iterable], Optimizer]  # type: ignore[type-arg]
LRSchedulerCallable = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]

Configure = Callable[..., object]


def instantiate_class(args: object, init: Mapping[str, PlainData]) -> Any:
    """Make the object that a config describes.

    Args:
        args: what comes before the arguments of the config: one object, or a tuple of several.
        init: class_path, and init_args unless there are none.

    Example:
        >>> instantiate_class(
        ...     model.parameters(), {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
        ... )
    """
    module, _, name = init["class_path"].rpartition(".")
    cls = getattr(importlib.import_module(module), name)
    return cls(*(args if isinstance(args, tuple) else (args,)), **(init.get("init_args") or {}))


def give_optimizer(
    module: LightningModule,
    optimizer: Mapping[str, object] | None,
    lr_scheduler: Mapping[str, object] | None,
) -> None:
    """Give the module a `configure_optimizers` that makes the config's optimizer and scheduler.

    It gets none if the config has no optimizer.

    Args:
        module: its own method, if it has one, is replaced.
        optimizer: class_path and init_args, or None.
        lr_scheduler: likewise.

    Raises:
        ConfigError: a scheduler was given without an optimizer, or ReduceLROnPlateau without a
            metric.
    """
    if optimizer is None:
        if lr_scheduler is not None:
            raise ConfigError(
                f"lr_scheduler is {short_name(lr_scheduler)}, but the config has no optimizer for"
                " it. Give one: --optimizer Adam."
            )
        return
    check_scheduler(lr_scheduler)
    if is_overridden("configure_optimizers", module, LightningModule):
        info(
            f"The config's optimizer, {short_name(optimizer)}, is used instead of"
            f" {type(module).__name__}.configure_optimizers."
        )
    replace_configure_optimizers(module, optimizer, lr_scheduler, configured)


def check_scheduler(lr_scheduler: Mapping[str, PlainData] | None) -> None:
    """Check the description of a scheduler.

    Raises:
        ConfigError: it is ReduceLROnPlateau without a metric.
    """
    if (
        lr_scheduler is not None
        and short_name(lr_scheduler) == "ReduceLROnPlateau"
        and "monitor" not in (lr_scheduler.get("init_args") or {})
    ):
        raise ConfigError(
            "lr_scheduler: PyTorch's ReduceLROnPlateau does not say which metric it watches. Use"
            " class_path: raylit.cli.ReduceLROnPlateau with monitor."
        )


def replace_configure_optimizers(
    module: LightningModule,
    optimizer: Mapping[str, object],
    lr_scheduler: Mapping[str, object] | None,
    configure: Configure,
) -> None:
    """Give the module a `configure_optimizers` that makes optimizer and scheduler when called.

    It returns the result of `configure` for them.
    """
    make = functools.partial(
        _make_and_configure, module, configure, _plain(optimizer), _plain(lr_scheduler)
    )
    module.configure_optimizers = make  # type: ignore[method-assign]


def configured(
    lightning_module: LightningModule,
    optimizer: Optimizer,
    lr_scheduler: LRSchedulerTypeUnion | None = None,
) -> object:
    """Return an optimizer and its scheduler as `configure_optimizers` does."""
    if lr_scheduler is None:
        return optimizer
    if isinstance(lr_scheduler, ReduceLROnPlateau):
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": lr_scheduler, "monitor": lr_scheduler.monitor},
        }
    return [optimizer], [lr_scheduler]


def short_name(spec: Mapping[str, object]) -> str:
    """Return the name of the class that a config describes."""
    return str(spec["class_path"]).rpartition(".")[2]


def _make_and_configure(
    module: LightningModule,
    configure: Configure,
    optimizer: Mapping[str, object],
    lr_scheduler: Mapping[str, object] | None,
) -> object:
    made = instantiate_class(module.parameters(), optimizer)
    scheduler = None if lr_scheduler is None else instantiate_class(made, lr_scheduler)
    return configure(module, optimizer=made, lr_scheduler=scheduler)


def _plain(spec: object) -> PlainData:
    return spec.as_dict() if hasattr(spec, "as_dict") else spec
