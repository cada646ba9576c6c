"""The state of a torchmetrics.Metric: taken, given back, added to, computed on this rank alone.

torchmetrics is imported only where somebody else has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from raylit.errors import ConfigError
from raylit.runtime.aliases import StateDict
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from torchmetrics import Metric

State = StateDict  # `states`: by name, a tensor or a list of tensors; `updates`: their number


def is_metric(value: object) -> TypeGuard[Metric]:
    """Tell whether `value` is a torchmetrics.Metric."""
    torchmetrics = sys.modules.get("torchmetrics")
    return torchmetrics is not None and isinstance(value, torchmetrics.Metric)


def metrics_in(module: nn.Module) -> list[tuple[str, Metric]]:
    """Return the Metrics among the submodules, with their paths."""
    return [(path, child) for path, child in module.named_modules() if is_metric(child)]


def path_of(metric: Metric, module: nn.Module | None) -> str:
    """Return where in the module a Metric is; "" if it is none of its submodules."""
    named = module.named_modules() if module is not None else ()
    return next((path for path, one in named if one is metric), "")


def state_of(metric: Metric) -> State:
    """Return the values that a Metric has taken in."""
    states = {
        name: list(value) if isinstance(value, list) else value
        for name, value in metric.metric_state.items()
    }
    return {"states": states, "updates": metric.update_count}


def restore(metric: Metric, state: State, device: torch.device) -> None:
    """Restore the state of a Metric from `state_of`."""
    for name, value in state["states"].items():
        is_list = isinstance(value, list)
        moved = [one.to(device) for one in value] if is_list else value.to(device)
        setattr(metric, name, moved)
    metric._update_count = state["updates"]
    metric._computed = None


def add(metric: Metric, state: State, device: torch.device) -> None:
    """Add the values that another Metric has taken in, as torchmetrics adds up those of ranks."""
    from torchmetrics.utilities.data import (
        dim_zero_cat,
        dim_zero_max,
        dim_zero_mean,
        dim_zero_min,
        dim_zero_sum,
    )

    elementwise: dict[object, Callable[[Tensor, Tensor], Tensor]] = {
        dim_zero_sum: torch.add,
        dim_zero_max: torch.maximum,
        dim_zero_min: torch.minimum,
    }
    before = metric.update_count
    more = state["updates"]
    for name, value in state["states"].items():
        own = getattr(metric, name)
        reduction = metric._reductions[name]
        if isinstance(own, list):
            own.extend(one.to(device) for one in (value if isinstance(value, list) else [value]))
        elif reduction in elementwise:
            setattr(metric, name, elementwise[reduction](own, value.to(device)))
        elif reduction is dim_zero_mean:
            setattr(metric, name, (own * before + value.to(device) * more) / max(before + more, 1))
        elif reduction is dim_zero_cat:
            setattr(metric, name, torch.cat([own, value.to(device)]))
        else:
            warn(
                f"The values of {type(metric).__name__}.{name} from another rank or an earlier"
                " process are left out: the Metric does not say how two of them become one. Give"
                " add_state a dist_reduce_fx."
            )
    metric._update_count = before + more
    metric._computed = None


def put_before(metric: Metric, states: list[State]) -> None:
    """Let a Metric that has begun anew go on from its earlier states, oldest first."""
    device = metric.device
    since = state_of(metric)
    restore(metric, states[0], device)
    for state in states[1:]:
        add(metric, state, device)
    add(metric, since, device)


def compute_alone(metric: Metric) -> object:
    """Compute a Metric on this rank alone, leaving no trace in it.

    Its own `compute` would wait for the other ranks, which may not be here.
    """
    # a child of a wrapper, such as MinMaxMetric's, syncs by itself
    parts = [one for one in metric.modules() if is_metric(one)]
    before = [(one, one._to_sync, one._computed) for one in parts]
    for one in parts:
        one._to_sync = False
    try:
        return metric.compute()
    finally:
        for one, syncs, computed in before:
            one._to_sync = syncs
            one._computed = computed


def compute_together(metric: Metric) -> object:
    """Compute a Metric over all ranks, which all come here."""
    for one in metric.modules():
        if is_metric(one):
            one._computed = None  # a rank that had computed it already would leave the others alone
    return metric.compute()


def as_number(value: Tensor | object, name: str) -> Tensor:
    """Return the value that a Metric computed, if it is one number.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ConfigError(
            f"The Metric logged as {name!r} computed {value!r}; one number as a tensor is wanted."
            " Log the parts of it with log_dict."
        )
    return value.detach()
