"""Optimizers and learning-rate schedulers as users see them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from raylit.runtime.aliases import UserOptimizer, UserScheduler


@dataclass
class LRSchedulerConfig:
    """A learning-rate scheduler and when it is stepped.

    Attributes:
        scheduler: the scheduler.
        name: how LearningRateMonitor calls it.
        interval: `epoch` or `step`.
        frequency: every how many epochs or steps.
        reduce_on_plateau: whether it is stepped with the value of `monitor`.
        monitor: the metric it watches.
        strict: whether it is an error if that metric is missing.
    """

    scheduler: UserScheduler
    name: str | None = None
    interval: str = "epoch"
    frequency: int = 1
    reduce_on_plateau: bool = False
    monitor: str | None = None
    strict: bool = True


class LightningOptimizer:
    """The user's optimizer as `self.optimizers()` gives it: `step` is counted and fires its hook.

    It passes for an instance of the wrapped optimizer's class; everything but `step` and
    `toggle_model` goes to the wrapped one, `optimizer`. The engine makes it.
    """

    def __init__(self, optimizer: UserOptimizer) -> None:
        self._optimizer = optimizer
        own = type(self)
        self.__class__ = type("Lightning" + type(optimizer).__name__, (own, type(optimizer)), {})

    @property
    def optimizer(self) -> UserOptimizer:
        """The wrapped optimizer."""
        return self._optimizer

    def step(self, closure: Callable[[], object] | None = None, **kwargs: object) -> Any:
        """Step the optimizer.

        Run `closure` if given, unscale gradients, fire the hook, change the parameters, count.

        Args:
            closure: computes the loss and the gradients anew.
            kwargs: handed to the wrapped optimizer's `step`.

        Raises:
            ConfigError: the closure cannot be called.
        """
        raise NotImplementedError

    def toggle_model(self, sync_grad: bool = True) -> AbstractContextManager[None]:
        """Let only this optimizer's parameters require gradients, for a `with` block.

        Args:
            sync_grad: False leaves gradients unsynchronized over ranks, for all but the last batch
                of an accumulation.
        """
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)
