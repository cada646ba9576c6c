"""LambdaCallback: a callback made of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from raylit.core.callback import Callback
from raylit.core.hooks import HOOKS
from raylit.errors import ConfigError, did_you_mean

_NAMES = tuple(
    name
    for name, hook in HOOKS.items()
    if "C" in hook.owners and name not in ("state_dict", "load_state_dict")
)


class LambdaCallback(Callback):
    """Calls functions at events, without a class of one's own.

    Args:
        hooks: event (`setup`, `on_train_epoch_end`, ... see `raylit.hooks`) to function; it gets
            what the method of a Callback gets: trainer, module and the arguments of the event.

    Raises:
        ConfigError: there is no such event.

    Example:
        >>> trainer = Trainer(
        ...     callbacks=[
        ...         LambdaCallback(
        ...             on_train_epoch_end=lambda trainer, module: print(trainer.current_epoch)
        ...         )
        ...     ]
        ... )
    """

    def __init__(self, **hooks: Callable[..., Any] | None) -> None:
        for name, function in hooks.items():
            if name not in _NAMES:
                raise ConfigError(
                    f"LambdaCallback({name}=...): there is no such event for"
                    f" callbacks.{did_you_mean(name, _NAMES)}"
                )
            if function is not None:
                setattr(self, name, function)
