"""From a config to objects.

At the start of a run, and again from the hyperparameters in a checkpoint.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace
from jsonargparse._common import parsing_settings  # there is no public way to put a setting back

from raylit.core.hparams import CLASS_PATH, INSTANTIATOR, INSTANTIATORS, constructed_with
from raylit.errors import CheckpointError
from raylit.runtime.messages import warn

T = TypeVar("T")

# From a class, the arguments it is made with and those of them that links gave, to what
# save_hyperparameters is to keep; None: the arguments.
Hyperparameters = Callable[[type, dict[str, Any], dict[str, Any]], dict[str, Any] | None]


def instantiate(
    parser: ArgumentParser, values: Namespace, hyperparameters: Hyperparameters
) -> Namespace:
    """Return `values` with objects in place of what describes them.

    Args:
        parser: whose values they are.
        values: a config, or a part of one.
        hyperparameters: says what modules and datamodules are to keep.

    Raises:
        Exception: whatever a constructor raised.
    """
    maker = _Maker(hyperparameters)
    try:
        made: Namespace = parser.instantiate(values, instantiators=[(maker, object, True)])
    except _Raised as carrier:
        raise carrier.error from None
    finally:
        maker.hyperparameters = None
    return made


def as_hyperparameters(spec: Mapping[str, Any], links: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a module keeps of the part of a config that describes it, so that `load_from_checkpoint` can make it again.

    Args:
        spec: its arguments as plain data; or class_path, init_args and dict_kwargs.
        links: arguments that were known only when others had been made, by their keys in `spec`.
    """
    kept = dict(spec)
    if "class_path" in spec:
        kept = {
            CLASS_PATH: spec["class_path"],
            **(spec.get("init_args") or {}),
            **(spec.get("dict_kwargs") or {}),
        }
    for key, value in links.items():
        *parents, name = key.removeprefix("init_args.").split(".")
        inner = kept
        for parent in parents:
            inner = inner[parent]
        inner[name] = value
    return {INSTANTIATOR: INSTANTIATORS[0], **kept}


def instantiate_module(class_type: type[T], config: dict[str, Any]) -> T:
    """Make a module or datamodule from hyperparameters that describe objects by class_path, as those of a CLI do.

    Only arguments whose type names a class become objects of it: what stands in a checkpoint cannot have something else made.

    Args:
        class_type: the class, or a base of it if the hyperparameters name one.
        config: the hyperparameters.

    Raises:
        CheckpointError: they name no class that was imported and is a `class_type`, or do not fit its arguments.
    """
    parser = ArgumentParser(exit_on_error=False)
    kept = {INSTANTIATOR: INSTANTIATORS[0], **config}
    config = dict(config)
    named = config.pop(CLASS_PATH, None)
    if named is not None:
        _check_class(named, class_type)
        parser.add_subclass_arguments(class_type, "module", fail_untyped=False)
        config = {"class_path": named, "dict_kwargs": config}
    else:
        parser.add_class_arguments(class_type, "module", fail_untyped=False)
    with _typed_only():
        try:
            values = parser.parse_object({"module": config})
        except ArgumentError as error:
            raise CheckpointError(
                f"The hyperparameters in the checkpoint do not fit {class_type.__name__}:"
                f" {error}\nGive what does as arguments: load_from_checkpoint(path, name=value)."
            ) from error

        def hyperparameters(
            cls: type, arguments: dict[str, Any], links: dict[str, Any]
        ) -> dict[str, Any] | None:
            _warn_of_descriptions(cls, arguments)
            is_meant = (
                cls is class_type
                if named is None
                else cls.__name__ == str(named).rpartition(".")[2]
            )
            return (
                kept if is_meant else None
            )  # so that checkpoints of what was loaded can be loaded too

        made: T = instantiate(parser, values, hyperparameters).module
    return made


class _Maker:
    """What jsonargparse calls to make an object.

    Callables that a config describes call it too, long after `instantiate` has ended.
    """

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters: Hyperparameters | None = hyperparameters

    def __call__(
        self, cls: type, /, *args: Any, applied_instantiation_links: dict[str, Any], **kwargs: Any
    ) -> Any:
        if self.hyperparameters is None:
            return cls(*args, **kwargs)
        if any(
            "." in name for name in kwargs
        ):  # a description that is left as it is comes in pieces
            kwargs = Namespace(kwargs).as_dict()  # type: ignore[no-untyped-call]
        try:
            with constructed_with(
                cls, self.hyperparameters(cls, kwargs, applied_instantiation_links)
            ):
                return cls(*args, **kwargs)
        except Exception as error:
            raise _Raised(error) from error


class _Raised(BaseException):
    """Carries an exception of a constructor past jsonargparse, which would make a text about types of it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _check_class(named: Any, base: type) -> None:
    module, _, name = str(named).rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CheckpointError(
            f"The checkpoint is of the class {named!r}, which is no {base.__name__} or was not"
            " imported: loading a checkpoint imports nothing that it names. Import"
            f" {module or 'its module'} first, or call load_from_checkpoint of that class."
        )


def _warn_of_descriptions(cls: type, arguments: dict[str, Any]) -> None:
    for name, value in arguments.items():
        if isinstance(value, (Mapping, Namespace)) and "class_path" in value:
            warn(
                f"{cls.__name__} gets {name} as it stands in the checkpoint, as a description of a"
                f" {value['class_path']}: the type of the argument does not say that it is one."
                f" Annotate it, or give it: load_from_checkpoint(path, {name}=...)."
            )


@contextmanager
def _typed_only() -> Iterator[None]:
    """Within, an argument without a type, or of type Any, is left as it is even if it looks like the description of an object."""
    setting = "instantiate_subclass_spec_in_any"
    before = parsing_settings[setting]
    parsing_settings[setting] = False
    try:
        yield
    finally:
        parsing_settings[setting] = before
