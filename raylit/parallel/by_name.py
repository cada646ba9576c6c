"""From the short name of a strategy to the strategy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch import nn

from raylit.errors import ConfigError, did_you_mean, foreign_hint
from raylit.parallel.ddp import DDPStrategy
from raylit.parallel.fsdp import FSDPStrategy
from raylit.parallel.strategy import Strategy

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "auto": DDPStrategy,
    "ddp": DDPStrategy,
    "ddp_find_unused_parameters_false": DDPStrategy,
    "ddp_find_unused_parameters_true": lambda: DDPStrategy(find_unused_parameters=True),
    **{
        f"ddp_{name}{end}": partial(
            DDPStrategy, start_method=method, find_unused_parameters=end.endswith("_true")
        )
        for name, method in (("spawn", "spawn"), ("fork", "fork"), ("notebook", "fork"))
        for end in ("", "_find_unused_parameters_false", "_find_unused_parameters_true")
    },
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
        near = did_you_mean(str(strategy), STRATEGIES)
        if str(strategy).startswith("deepspeed"):
            near = " DeepSpeed is not part of raylit; 'fsdp' shards a model, too."
        raise ConfigError(
            f"You selected an invalid strategy name: `strategy={strategy!r}`. "
            f"strategy={strategy!r} is not known.{near} Use one"
            f" of {', '.join(map(repr, STRATEGIES))} or an object: DDPStrategy(...),"
            f" FSDPStrategy(...).{foreign_hint(strategy)}"
        )
    return STRATEGIES[strategy]()


def no_sync(model: nn.Module | None) -> AbstractContextManager[object]:
    """Add up gradients on each rank alone, in backward passes of a `with` block.

    For all but the last batch of an accumulation.
    """
    own = getattr(model, "no_sync", None)
    context: AbstractContextManager[object] = nullcontext() if own is None else own()
    return context
