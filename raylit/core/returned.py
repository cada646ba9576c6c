"""How callbacks come home: from the process of rank 0 to the driver's objects.

They are told apart by `state_key`, as in checkpoints, not by their place: `configure_callbacks` of
the module adds some and replaces others, on the workers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from raylit.core.callback import Callback
from raylit.runtime.messages import warn


@dataclass
class ReturnedCallback:
    """A callback of rank 0, as it is after the run.

    Attributes:
        key: its `state_key`, and how many of the same stand before it: those without a state may
            share one.
        kind: its class.
        values: its attributes.
        left: attributes that stay behind, with the reason.
    """

    key: tuple[str, int]
    kind: type[Callback]
    values: dict[str, object]
    left: dict[str, str] = field(default_factory=dict)

    def leave_behind(self, dumps: Callable[[object], object]) -> None:
        """Give up the attributes that cannot be pickled: they must not cost a finished fit."""
        for name, value in list(self.values.items()):
            try:
                dumps(value)
            except Exception as error:  # pickling runs the code of user's classes
                self.left[name] = f"{type(error).__name__}: {error}"
                del self.values[name]


def returned(callbacks: Iterable[Callback]) -> list[ReturnedCallback]:
    """Return the attributes that the callbacks of this rank have at the end of a job."""
    found = []
    for key, callback in _by_key(callbacks).items():
        made = ReturnedCallback(key, type(callback), {})
        try:
            made.values = dict(callback.__getstate__())
        except Exception as error:  # the user's own
            made.left["__getstate__()"] = f"{type(error).__name__}: {error}"
        # `log` is the module's, with all that this rank made of it
        made.values.pop("_log", None)
        found.append(made)
    return found


def bring_home(callbacks: Sequence[Callback], states: Iterable[ReturnedCallback]) -> list[Callback]:
    """Return the driver's callbacks as those of rank 0 are: its own objects, where it has them."""
    own = _by_key(callbacks)
    home = []
    for state in states:
        callback = own.get(state.key)
        if callback is None or type(callback).__qualname__ != state.kind.__qualname__:
            callback = state.kind.__new__(state.kind)
        callback.__dict__.update(state.values)
        home.append(callback)
        for name, why in state.left.items():
            warn(
                f"The callback {state.kind.__name__} comes back from the workers without its"
                f" attribute {name}, which cannot be pickled ({why}). Make it where it is used, or"
                " leave it out in __getstate__().",
            )
    return home


def _by_key(callbacks: Iterable[Callback]) -> dict[tuple[str, int], Callback]:
    seen: Counter[str] = Counter()
    found = {}
    for callback in callbacks:
        key = callback.state_key
        found[key, seen[key]] = callback
        seen[key] += 1
    return found
