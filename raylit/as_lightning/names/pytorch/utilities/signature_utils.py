"""Lightning's place for the function that looks for a parameter in a hook's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable

__all__ = ["is_param_in_hook_signature"]


def is_param_in_hook_signature(
    hook_fx: Callable[..., object], param: str, explicit: bool = False, min_args: int | None = None
) -> bool:
    """Tell whether a hook takes a parameter.

    Args:
        hook_fx: the hook.
        param: the parameter's name.
        explicit: whether it must be named, rather than be one of `*args`.
        min_args: so many parameters mean that it is among them, whatever their names.
    """
    given = inspect.getfullargspec(getattr(hook_fx, "__wrapped__", hook_fx))
    args = given.args[1:] if inspect.ismethod(hook_fx) else given.args
    is_named = param in args or param in given.kwonlyargs
    by_number = min_args is not None and len(args) >= min_args
    return is_named or (not explicit and given.varargs is not None) or by_number
