"""Lightning's place for functions that read frames and namespaces."""

from __future__ import annotations

import inspect
import pickle
import types
from argparse import Namespace
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from raylit.core.hparams import AttributeDict
from raylit.utilities.model_helpers import is_picklable

if TYPE_CHECKING:
    from raylit.runtime.aliases import Arguments

__all__ = [
    "AttributeDict",
    "clean_namespace",
    "collect_init_args",
    "get_init_args",
    "is_picklable",
    "lightning_getattr",
    "lightning_hasattr",
    "lightning_setattr",
    "parse_class_init_keys",
]


def parse_class_init_keys(cls: type) -> tuple[str, str | None, str | None]:
    """Return the names of `self`, `*args` and `**kwargs` in the `__init__` of a class."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())  # type: ignore[misc]
    kinds = {parameter.kind: parameter.name for parameter in parameters}
    return (
        parameters[0].name,
        kinds.get(inspect.Parameter.VAR_POSITIONAL),
        kinds.get(inspect.Parameter.VAR_KEYWORD),
    )


def get_init_args(frame: types.FrameType) -> Arguments:
    """Return the arguments with which the `__init__` of a frame was called; none in another."""
    variables = frame.f_locals
    cls = variables.get("__class__")
    if not isinstance(cls, type):
        return {}
    own_name, positional, keyword = parse_class_init_keys(cls)
    names = set(inspect.signature(cls.__init__).parameters)  # type: ignore[misc]
    kept = names - {own_name, positional, keyword}
    found = {name: value for name, value in variables.items() if name in kept}
    return {**found, **(variables.get(keyword, {}) if keyword else {})}


def collect_init_args(
    frame: types.FrameType,
    path_args: list[Arguments],
    inside: bool = False,
    classes: tuple[type, ...] = (),
) -> list[Arguments]:
    """Return the arguments of the `__init__` calls on the stack, from the inner one outwards."""
    outer = frame.f_back
    cls = frame.f_locals.get("__class__")
    is_init = isinstance(cls, type) and (not classes or issubclass(cls, classes))
    if is_init:
        path_args = [*path_args, get_init_args(frame)]
    elif inside:
        return path_args
    return path_args if outer is None else collect_init_args(outer, path_args, is_init, classes)


def clean_namespace(hparams: MutableMapping[str, Any] | Namespace) -> None:
    """Remove the values that cannot be pickled from hyperparameters."""
    values = vars(hparams) if isinstance(hparams, Namespace) else hparams
    for name in [name for name, value in values.items() if not _can_be_pickled(value)]:
        del values[name]


def _can_be_pickled(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:  # pickling runs the code of users' classes
        return False
    return True


def _holders(model: object, attribute: str) -> list[object]:
    """Return those of the model, its hyperparameters and its datamodule that have an attribute."""
    trainer = getattr(model, "_attached", None)
    hparams = getattr(model, "hparams", {})
    found = [model] if hasattr(model, attribute) else []
    if attribute in hparams:
        found.append(hparams)
    if trainer is not None and hasattr(trainer.datamodule, attribute):
        found.append(trainer.datamodule)
    return found


def lightning_hasattr(model: object, attribute: str) -> bool:
    """Tell whether a model, its hyperparameters or its datamodule has an attribute."""
    return bool(_holders(model, attribute))


def lightning_getattr(model: object, attribute: str) -> Any:
    """Return an attribute of a datamodule, of hyperparameters, or of a model.

    Raises:
        AttributeError: none of them has it.
    """
    holders = _holders(model, attribute)
    if not holders:
        raise AttributeError(
            f"{attribute} is neither stored in the model namespace nor the `hparams`"
            " namespace/dict, nor the datamodule."
        )
    holder = holders[-1]
    return holder[attribute] if isinstance(holder, dict) else getattr(holder, attribute)


def lightning_setattr(model: object, attribute: str, value: object) -> None:
    """Set an attribute wherever it is: model, hyperparameters, datamodule.

    Raises:
        AttributeError: it is nowhere.
    """
    holders = _holders(model, attribute)
    if not holders:
        raise AttributeError(
            f"{attribute} is neither stored in the model namespace nor the `hparams`"
            " namespace/dict, nor the datamodule."
        )
    for holder in holders:
        if isinstance(holder, dict):
            holder[attribute] = value
        else:
            setattr(holder, attribute, value)
