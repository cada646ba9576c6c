"""Questions about a module, and about parameters that several of its parts share."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from raylit.callbacks import Callback
from raylit.core import hooks
from raylit.core.datamodule import LightningDataModule
from raylit.core.module import LightningModule

M = TypeVar("M", bound=nn.Module)


def is_overridden(
    method_name: str, instance: object | None = None, parent: type | None = None
) -> bool:
    """Tell whether a module, datamodule or callback brings its own method.

    Args:
        method_name: name of the method.
        instance: the object; None has no methods.
        parent: the class whose own method does not count; found for modules, datamodules and
            callbacks.

    Raises:
        ValueError: `parent` is needed, or has no such method.

    Example:
        >>> is_overridden("training_step", LightningModule())
        False
    """
    if instance is None:
        return False
    if parent is None:
        parent = next(
            (
                base
                for base in (LightningModule, LightningDataModule, Callback)
                if isinstance(instance, base)
            ),
            None,
        )
        if parent is None:
            raise ValueError(
                f"Expected a parent: {type(instance).__name__} is no module, datamodule or"
                " callback, so say whose method counts as not overridden."
            )
    if hasattr(instance, method_name) and not hasattr(parent, method_name):
        raise ValueError(f"The parent {parent.__name__} has no method {method_name!r}.")
    return hooks.is_overridden(method_name, instance, parent)


def is_picklable(obj: object) -> bool:
    """Tell whether an object can be pickled, by trying."""
    try:
        pickle.dumps(obj)
    except (pickle.PickleError, AttributeError, RuntimeError, TypeError):
        return False
    return True


def measure_flops(
    model: nn.Module,
    forward_fn: Callable[[], Tensor],
    loss_fn: Callable[[Tensor], Tensor] | None = None,
) -> int:
    """Count the floating-point operations of a forward pass, and of a backward pass.

    The latter if there is a loss.

    Args:
        model: the module; made under `torch.device("meta")`, nothing is computed.
        forward_fn: runs it and returns its output.
        loss_fn: makes a loss of the output, from which backward is run.

    Example:
        >>> with torch.device("meta"):
        ...     model, x = torch.nn.Linear(4, 2), torch.randn(3, 4)
        >>> measure_flops(model, lambda: model(x))
        48
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = forward_fn()
        if loss_fn is not None:
            loss_fn(output).backward()
    flops: int = counter.get_total_flops()
    return flops


def find_shared_parameters(module: nn.Module) -> list[list[str]]:
    """Return the names of each parameter that has several, such as a layer's weight used twice."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [shared for shared in names.values() if len(shared) > 1]


def set_shared_parameters(module: M, shared_params: list[list[str]]) -> M:
    """Make parameters one again that were one before a module was copied or moved.

    Args:
        module: changed in place, and returned.
        shared_params: what `find_shared_parameters` returned before.
    """
    for first, *others in shared_params:
        parameter = _follow(module, first)
        for other in others:
            path, _, name = other.rpartition(".")
            setattr(_follow(module, path), name, parameter)
    return module


def _follow(value: object, path: str) -> object:
    for name in filter(None, path.split(".")):
        value = getattr(value, name)
    return value
