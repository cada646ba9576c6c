"""From a config to objects, and from the hyperparameters in a checkpoint to the same.

A config is code that its author chose: it may name any class. The hyperparameters in a checkpoint
are data: jsonargparse reads them within `reading_checkpoint` only, where each name has to pass the
gate of `raylit.core.importable`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser, Namespace

# There is no public way to put a setting back.
from jsonargparse import _optionals as read_mode
from jsonargparse._common import parsing_settings
from jsonargparse._util import canonical_import_paths, get_import_path
from jsonargparse.typing import register_type

from raylit.core import importable
from raylit.core.hparams import CLASS_PATH, INSTANTIATOR, INSTANTIATORS, constructed_with
from raylit.errors import CheckpointError
from raylit.runtime.aliases import Arguments, PlainDict
from raylit.runtime.messages import warn

T = TypeVar("T")


def _a_path(value: object) -> str:
    """Return the path that a config gives: a text, or an object for a path.

    Raises:
        TypeError: it is neither.
    """
    path = os.fspath(value)  # type: ignore[call-overload]
    if not isinstance(path, str):
        raise TypeError(f"{path!r} is no path")
    return path


# jsonargparse takes anything for a path: a list would become a folder with its name
register_type(os.PathLike, str, _a_path, fail_already_registered=False)

# From a class, the arguments it is made with and those of them that links gave, to what
# save_hyperparameters is to keep; None: the arguments.
Hyperparameters = Callable[[type, Arguments, Arguments], Arguments | None]


def instantiate(
    parser: ArgumentParser, values: Namespace, hyperparameters: Hyperparameters
) -> Namespace:
    """Return `values` with objects in place of their descriptions.

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


def as_hyperparameters(spec: PlainDict, links: Mapping[str, object]) -> Arguments:
    """Return the hyperparameters that a module keeps of the part of a config that describes it.

    `load_from_checkpoint` can make the module again from them.

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


def instantiate_module(class_type: type[T], config: dict[str, object]) -> T:
    """Make a module or datamodule from hyperparameters that describe objects by class_path.

    Those of a CLI do. Only arguments whose type names a class become objects of it: a checkpoint
    cannot have anything else made.

    Args:
        class_type: the class, or a base of it if the hyperparameters name one.
        config: the hyperparameters.

    Raises:
        CheckpointError: they name no class that was imported and is a `class_type`, or do not fit
            its arguments.
    """
    parser = ArgumentParser(exit_on_error=False)
    kept = {INSTANTIATOR: INSTANTIATORS[0], **config}
    config = dict(config)
    named = config.pop(CLASS_PATH, None)
    made_class = class_type
    spec = config
    if named is not None:
        made_class = find_module_class(named, class_type)
        parser.add_subclass_arguments(class_type, "module", fail_untyped=False)
        spec = {"class_path": named, "dict_kwargs": config}
    else:
        parser.add_class_arguments(class_type, "module", fail_untyped=False)
    with typed_only():
        try:
            with reading_checkpoint(config, made_class, trusted=[named]):
                values = parser.parse_object({"module": spec})
        except ArgumentError as error:
            raise CheckpointError(
                f"The hyperparameters in the checkpoint do not fit {class_type.__name__}:"
                f" {why_refused(error, made_class)}\nGive what does as arguments:"
                " load_from_checkpoint(path, name=value)."
            ) from error

        def hyperparameters(
            cls: type, arguments: dict[str, object], links: dict[str, object]
        ) -> dict[str, object] | None:
            _warn_of_descriptions(cls, arguments)
            # so that checkpoints of what was loaded can be loaded too
            return kept if cls is made_class else None

        made: T = instantiate(parser, values, hyperparameters).module
    return made


# ---- the gate ----


@contextmanager
def reading_checkpoint(given: object, cls: type, trusted: object = None) -> Iterator[None]:
    """Let jsonargparse read hyperparameters out of a checkpoint, without following them anywhere.

    No name is imported unless the gate finds it, and no file or URL is read that a value names.

    Args:
        given: the hyperparameters.
        cls: the class of the module or datamodule that they are of.
        trusted: values of a config that are read along with them; their names are its author's.
    """
    allowed: dict[str, bool] = {"*": False}
    classes = [cls]  # whose defaults their authors named
    for name in _dotted_names(given):
        try:
            found = importable.find_public(name, cls)
        except ValueError:
            allowed[name] = False  # also where it lies below a name that is allowed
        else:
            allowed |= {path: True for path in (name, *canonical_import_paths(found))}
            classes += [found] if isinstance(found, type) else []
    for default in (default for one in classes for default in importable.defaults(one)):
        paths = {get_import_path(default), *canonical_import_paths(default)}
        allowed |= {path: True for path in paths if path}
    for name in _dotted_names(trusted):
        allowed |= {path: True for path in (name, *_canonical_paths(name))}
    settings = {"import_path_verdicts": allowed, "import_paths_enforced": True}
    before = {name: parsing_settings[name] for name in settings}
    mode = read_mode._config_read_mode
    parsing_settings.update(settings)
    read_mode._config_read_mode = "frF"  # a file that is no file: no path is one
    try:
        yield
    finally:
        parsing_settings.update(before)
        read_mode._config_read_mode = mode


def refuse_descriptions(given: object, cls: type) -> None:
    """Check each `class_path` of hyperparameters that are to become part of a config.

    A config makes objects also of descriptions that no type asks for.

    Raises:
        CheckpointError: one names what a checkpoint may not name.
    """
    for spec in _mappings(given):
        if "class_path" not in spec:
            continue
        try:
            importable.find_public(str(spec["class_path"]), cls)
        except ValueError as error:
            raise CheckpointError(
                "The hyperparameters in the checkpoint describe an object that is not made:"
                f" {error}."
            ) from error


def find_module_class(named: object, base: type) -> type:
    """Return the class of a module that a checkpoint names; nothing is imported for it.

    Raises:
        CheckpointError: it is no `base`, or was not imported.
    """
    module, _, name = str(named).rpartition(".")
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    if not (isinstance(found, type) and issubclass(found, base)):
        raise CheckpointError(
            f"The checkpoint is of the class {named!r}, which is no {base.__name__} or was not"
            " imported: loading a checkpoint imports nothing that it names. Import"
            f" {module or 'its module'} first, or call load_from_checkpoint of that class."
        )
    return found


def why_refused(error: Exception, cls: type) -> str:
    """Return jsonargparse's error about hyperparameters, or the gate's about a name in them."""
    denied = re.search(r"Importing '([\w.]+)' is not allowed", str(error))
    if denied is None:
        return str(error)
    try:
        importable.find_public(denied[1], cls)
    except ValueError as reason:
        return f"{reason}."
    return str(error)


def _mappings(value: object) -> Iterator[Mapping[object, object]]:
    """Yield the mappings in nested data, each of them once."""
    seen: set[int] = set()
    left = [value]
    for one in left:  # which grows
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Namespace):
            one = one.as_dict()
        if isinstance(one, Mapping):
            yield one
            left.extend(one.values())
        elif isinstance(one, (list, tuple, set, frozenset)):
            left.extend(one)


def _dotted_names(value: object) -> set[str]:
    """Return the texts in nested data that could be paths of classes and functions."""
    values = [one for mapping in _mappings({"": value}) for one in mapping.values()]
    texts: set[str] = set()
    for one in values:  # which grows
        if isinstance(one, (list, tuple, set, frozenset)):
            values.extend(one)
        elif isinstance(one, str) and "." in one and len(one) < 1000:
            texts.add(one)
    return {text for text in texts if all(part.isidentifier() for part in text.split("."))}


def _canonical_paths(name: str) -> set[str]:
    module, _, attribute = name.rpartition(".")
    if module not in sys.modules:
        return set()
    found = vars(sys.modules[module]).get(attribute)
    return set() if found is None else set(canonical_import_paths(found))


class _Maker:
    """The callable that jsonargparse makes an object with.

    Callables that a config describes call it too, long after `instantiate` has ended.
    """

    def __init__(self, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters: Hyperparameters | None = hyperparameters

    def __call__(
        self,
        cls: type,
        /,
        *args: object,
        applied_instantiation_links: dict[str, object],
        **kwargs: object,
    ) -> object:
        if self.hyperparameters is None:
            return cls(*args, **kwargs)
        # A description that is left as it is comes in pieces
        if any("." in name for name in kwargs):
            kwargs = Namespace(kwargs).as_dict()  # type: ignore[no-untyped-call]
        try:
            with constructed_with(
                cls, self.hyperparameters(cls, kwargs, applied_instantiation_links)
            ):
                return cls(*args, **kwargs)
        except Exception as error:
            raise _Raised(error) from error


class _Raised(BaseException):
    """Carries an exception of a constructor past jsonargparse.

    That would make a text about types of it.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def _warn_of_descriptions(cls: type, arguments: dict[str, object]) -> None:
    for name, value in arguments.items():
        if isinstance(value, (Mapping, Namespace)) and "class_path" in value:
            warn(
                f"{cls.__name__} gets {name} as it stands in the checkpoint, as a description of a"
                f" {value['class_path']}: the type of the argument does not say that it is one."
                f" Annotate it, or give it: load_from_checkpoint(path, {name}=...)."
            )


@contextmanager
def typed_only() -> Iterator[None]:
    """Leave arguments without a type, or of type Any, as they are in a block.

    Also if they look like the description of an object.
    """
    setting = "instantiate_subclass_spec_in_any"
    before = parsing_settings[setting]
    parsing_settings[setting] = False
    try:
        yield
    finally:
        parsing_settings[setting] = before


def whole_numbers_first(parser: ArgumentParser) -> None:
    """Let arguments that are `int | float` take 2 as a whole number, whatever was annotated before.

    For a default None jsonargparse makes `Optional[int | float | None]`, and Python reuses the
    object that it made for an equal union: after a `float | int | None` anywhere in the process, 2
    would become 2.0, which as a limit of batches means something else.
    """
    actions: list[Any] = list(parser._actions)
    for action in actions:
        hint: Any = getattr(action, "_typehint", None)
        kinds = list(get_args(hint)) if get_origin(hint) is Union else []
        if int in kinds and float in kinds and kinds.index(float) < kinds.index(int):
            kinds.remove(float)
            kinds.insert(kinds.index(int) + 1, float)
            # not by Union[...], which would return the one that is kept
            action._typehint = type(hint)(Union, tuple(kinds))
