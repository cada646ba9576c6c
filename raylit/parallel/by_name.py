"""From the short name of a strategy to the strategy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from raylit.errors import ConfigError, did_you_mean
from raylit.parallel.ddp import DDPStrategy
from raylit.parallel.fsdp import FSDPStrategy
from raylit.parallel.strategy import Strategy

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "auto": DDPStrategy,
    "ddp": DDPStrategy,
    "ddp_find_unused_parameters_false": DDPStrategy,
    "ddp_find_unused_parameters_true": lambda: DDPStrategy(find_unused_parameters=True),
    "fsdp": FSDPStrategy,
    "fsdp_cpu_offload": lambda: FSDPStrategy(cpu_offload=True),
}


def find_strategy(strategy: str | Strategy) -> Strategy:
    """Return the strategy for its short name.

    Raises:
        ConfigError: there is no such strategy.
    """
    if isinstance(strategy, Strategy):
        return strategy
    if not isinstance(strategy, str) or strategy not in STRATEGIES:
        raise ConfigError(
            f"strategy={strategy!r} is not known.{did_you_mean(str(strategy), STRATEGIES)} Use one"
            f" of {', '.join(map(repr, STRATEGIES))} or an object: DDPStrategy(...),"
            " FSDPStrategy(...)."
        )
    return STRATEGIES[strategy]()


def no_sync(model: nn.Module | None) -> AbstractContextManager[Any]:
    """Add up gradients on each rank alone, in backward passes of a `with` block.

    For all but the last batch of an accumulation.
    """
    own = getattr(model, "no_sync", None)
    context: AbstractContextManager[Any] = nullcontext() if own is None else own()
    return context
