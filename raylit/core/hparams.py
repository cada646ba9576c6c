"""Hyperparameters.

The arguments a module or datamodule was made with, kept for checkpoints, loggers and
`load_from_checkpoint`.
"""

from __future__ import annotations

import ast
import copy
import csv
import dataclasses
import functools
import importlib
import inspect
import os
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from raylit.checkpoint import foreign
from raylit.core import importable, omega
from raylit.errors import CheckpointError, ConfigError
from raylit.runtime import storage
from raylit.runtime.aliases import Arguments, CheckpointDict, StateDict
from raylit.runtime.bounds import TooLargeError, check_size
from raylit.runtime.messages import warn
from raylit.runtime.secrets import holds_secret

_PRIMITIVES = (bool, int, float, str)

# What the CLI was told, and of which class: a config file knows more than the frame does (nested
# class_path entries).
given_hparams: ContextVar[tuple[type, Arguments] | None] = ContextVar("given_hparams", default=None)

# Among the hyperparameters that a CLI keeps: the class they are of, and that jsonargparse is to
# make it of them. The names are Lightning's.
CLASS_PATH = "_class_path"
INSTANTIATOR = "_instantiator"
INSTANTIATORS = (
    "lightning.pytorch.cli.instantiate_module",
    "pytorch_lightning.cli.instantiate_module",
)


class AttributeDict(dict[str, Any]):
    """A dict whose keys can be read and set as attributes: `hparams.lr` is `hparams["lr"]`."""

    def __getattr__(self, key: str) -> Any:
        try:
            return self[key]
        except KeyError:
            raise AttributeError(
                f"no hyperparameter {key!r}; there are: {', '.join(map(str, self)) or 'none'}"
            ) from None

    def __setattr__(self, key: str, value: object) -> None:
        self[key] = value

    def __delattr__(self, key: str) -> None:
        try:
            del self[key]
        except KeyError:
            raise AttributeError(key) from None

    def __repr__(self) -> str:
        if not self:
            return ""
        width = max(len(str(key)) for key in self) + 3
        return "\n".join(
            f'"{key}":'.ljust(width) + f" {value}" for key, value in sorted(self.items())
        )


class HasHyperparameters:
    """Gives `save_hyperparameters`, `hparams` and `hparams_initial` to modules and datamodules."""

    CHECKPOINT_HYPER_PARAMS_KEY: str
    CHECKPOINT_HYPER_PARAMS_NAME: str
    CHECKPOINT_HYPER_PARAMS_TYPE: str

    _hparams: AttributeDict  # once there are some
    _log_hyperparams: bool = False
    _hparams_name: str | None = None
    _hparams_by_name: frozenset[str] = frozenset()  # those that save_hyperparameters was asked for

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: str | Sequence[str] | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of `__init__` in `hparams`. Call it in `__init__`, first thing.

        Texts whose names look like secrets (`api_key`, `hf_token`, `password`), and URIs with a
        password, are kept out of checkpoints and loggers, unless they are asked for by name.

        Args:
            args: names of arguments to keep (default: all), or one container (dict, Namespace,
                dataclass) to keep instead.
            ignore: names not to keep.
            frame: the frame whose arguments are meant; found by itself.
            logger: whether the loggers record them.

        Raises:
            ConfigError: a number, string or bool was given where a container or argument names are
                expected.

        Example:
            >>> class Net(LightningModule):
            ...     def __init__(self, width=32, lr=1e-3):
            ...         super().__init__()
            ...         self.save_hyperparameters()
            >>> Net(width=8).hparams.width
            8
        """
        self._log_hyperparams = logger
        given = given_hparams.get()
        # A module made within it has arguments of its own, which no CLI was told
        if given is not None and given[0] is type(self):
            init_args = dict(given[1])
        elif dataclasses.is_dataclass(self):
            init_args = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        else:
            if frame is None:
                here = inspect.currentframe()
                frame = here.f_back if here else None
            init_args = _constructor_arguments(frame)

        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        init_args = {name: value for name, value in init_args.items() if name not in ignored}
        containers = [arg for arg in args if not isinstance(arg, str)]
        if (
            len(args) == 1
            and containers
            and not containers[0]
            and not isinstance(containers[0], _PRIMITIVES)
        ):
            return  # an empty container
        found: AttributeDict
        if not args:
            found = AttributeDict(init_args)
            self._hparams_name = "kwargs" if init_args else None
        elif containers:
            whole = _as_hparams(containers[0])
            found = AttributeDict({k: v for k, v in whole.items() if k not in ignored})
            if omega.is_config(containers[0]) and not self.hparams and not ignored:
                self._hparams = containers[0]
            names = [name for name, value in init_args.items() if value is containers[0]]
            self._hparams_name = names[0] if names else None
        else:
            unknown = [name for name in args if name not in init_args and name not in ignored]
            if unknown:
                raise ConfigError(
                    f"save_hyperparameters({', '.join(map(repr, args))}):"
                    f" {type(self).__name__}.__init__ has no argument {unknown[0]!r}."
                )
            found = AttributeDict({name: init_args[name] for name in args if name in init_args})
            self._hparams_name = "kwargs"
            self._hparams_by_name = self._hparams_by_name | set(found)

        hparams = self.hparams
        self.remove_ignored_hparams(ignored)
        if not containers or hparams is not containers[0]:
            hparams.update(found)
        self._hparams_initial = copy.deepcopy(hparams)

    def remove_ignored_hparams(self, ignore_list: Iterable[str]) -> None:
        """Forget the hyperparameters of these names, such as those that a base class saved."""
        for name in ignore_list:
            self.hparams.pop(name, None)

    @property
    def hparams(self) -> AttributeDict:
        """The saved hyperparameters; may be changed. OmegaConf's DictConfig, if that was saved."""
        if "_hparams" not in self.__dict__:
            self._hparams = AttributeDict()
        return self._hparams

    @property
    def secret_hparams(self) -> list[str]:
        """Names of hyperparameters that look like secrets, and are neither stored nor logged."""
        return [
            name
            for name, value in self.hparams.items()
            if name not in self._hparams_by_name and holds_secret(str(name), value)
        ]

    @property
    def hparams_initial(self) -> AttributeDict:
        """A copy of the hyperparameters as they were saved; changing it changes nothing."""
        found: AttributeDict = copy.deepcopy(self.__dict__.get("_hparams_initial", AttributeDict()))
        return found


def holders_of(
    name: str, module: HasHyperparameters, datamodule: HasHyperparameters | None = None
) -> list[HasHyperparameters | AttributeDict]:
    """Return the objects that have the attribute or hyperparameter `name`.

    The module, its hparams, the datamodule and its hparams are asked in turn; the last one counts.
    """
    holders: list[HasHyperparameters | AttributeDict] = []
    for owner in (module, datamodule):
        if owner is not None:
            holders += [owner] if hasattr(owner, name) else []
            holders += [owner.hparams] if name in owner.hparams else []
    return holders


def get_value(holders: Sequence[HasHyperparameters | AttributeDict], name: str) -> Any:
    """Return the value of `name` in the last of `holders`."""
    return (
        holders[-1][name] if isinstance(holders[-1], MutableMapping) else getattr(holders[-1], name)
    )


def set_value(
    holders: Sequence[HasHyperparameters | AttributeDict], name: str, value: object
) -> None:
    """Set `name` in all of `holders`."""
    for holder in holders:
        if isinstance(holder, MutableMapping):
            holder[name] = value
        else:
            setattr(holder, name, value)


def accepted_arguments(cls: type, values: Mapping[str, object]) -> Arguments:
    """Return those of `values` that `cls.__init__` takes by name.

    All of them if it takes `**kwargs`.
    """
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(values)
    return {name: value for name, value in values.items() if name in parameters}


T = TypeVar("T", bound=HasHyperparameters)


def construct(
    cls: type[T], checkpoint: CheckpointDict, hparams_file: str | None, overrides: Arguments
) -> T:
    """Make an object of `cls` with the hyperparameters in a checkpoint.

    Args:
        cls: the class; it gets those that its `__init__` takes.
        checkpoint: what a checkpoint file holds.
        hparams_file: YAML file with hyperparameters to take instead; or CSV, with the columns key
            and value.
        overrides: arguments that win over the stored ones.

    Raises:
        CheckpointError: a CLI made the checkpoint, and its hyperparameters do not fit the class; or
            one is not to be found where it was imported from.
    """
    if hparams_file:
        stored = _read_hparams(hparams_file)
    else:
        stored = stored_hparams(checkpoint, cls.CHECKPOINT_HYPER_PARAMS_KEY)
    checkpoint[cls.CHECKPOINT_HYPER_PARAMS_KEY] = {**stored, **overrides}  # for on_load_checkpoint
    described = _mapping(checkpoint, "raylit", "hyper_parameters", cls.CHECKPOINT_HYPER_PARAMS_KEY)
    stored = {
        **{
            name: _restored(name, one, cls)
            for name, one in described.items()
            if name not in overrides and name not in stored
        },
        **stored,
    }
    container = checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)
    name = container if isinstance(container, str) and container != "kwargs" else ""
    is_one_argument = bool(name) and name in accepted_arguments(cls, {name: None})
    if is_one_argument:
        stored = {**stored, **overrides}  # before it becomes a config, which stays one
    configs = _mapping(checkpoint, "raylit", "configs").get(cls.CHECKPOINT_HYPER_PARAMS_KEY, [])
    stored = omega.restored(stored, configs)
    if is_one_argument:
        stored = {name: stored}
    values = {**stored, **overrides}
    maker = values.pop(INSTANTIATOR, None)
    is_named = maker is not None and CLASS_PATH in values  # perhaps a subclass with more arguments
    arguments = values if is_named else accepted_arguments(cls, values)
    _check_pickled(cls, checkpoint, values)
    if maker is None:
        return cls(**arguments)
    if maker not in INSTANTIATORS:  # a checkpoint must not be able to have any function called
        raise CheckpointError(
            f"The checkpoint wants {cls.__name__} to be made by {maker!r}, which raylit does not"
            " know. It was not called."
        )
    # The only place for jsonargparse
    made: T = importlib.import_module("raylit.cli.construct").instantiate_module(cls, arguments)
    return made


def _check_pickled(cls: type, checkpoint: CheckpointDict, values: Arguments) -> None:
    """Report hyperparameters that are pickled in a checkpoint and were not restored.

    Raises:
        CheckpointError: the class cannot be made without it.
    """
    key = cls.CHECKPOINT_HYPER_PARAMS_KEY  # type: ignore[attr-defined]
    pickled = {place[1] for place in foreign.places(checkpoint) if place[0] == key and place[1:]}
    missing = sorted(name for name in pickled if name not in values)
    if not missing:
        return
    parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
    text = (
        f"The hyperparameters {', '.join(missing)} of {cls.__name__} are objects, which the"
        " checkpoint holds pickled: they come back only where it may run code. If you wrote it"
        " yourself and trust it, load it with weights_only=False; or give them:"
        f" {cls.__name__}.load_from_checkpoint(path, {missing[0]}=...)."
    )
    if any(name in parameters and is_required(parameters[name]) for name in missing):
        raise CheckpointError(text)
    warn(f"{text} Their defaults are taken.")


def is_required(parameter: inspect.Parameter) -> bool:
    """Tell whether an argument has to be given."""
    return parameter.default is inspect.Parameter.empty


def stored_hparams(checkpoint: CheckpointDict, key: str) -> Arguments:
    """Return a copy of the hyperparameters in a checkpoint.

    Args:
        checkpoint: as it was loaded; it may hold anything.
        key: where it has them, such as `hyper_parameters`.

    Raises:
        CheckpointError: they are no mapping, or too large.
    """
    found = _mapping(checkpoint, key)
    try:
        check_size(found)
    except TooLargeError as error:
        raise CheckpointError(
            f"The hyperparameters in the checkpoint cannot be used: {error}. Give your own:"
            " load_from_checkpoint(path, hparams_file=...)."
        ) from error
    return dict(found)


def _mapping(checkpoint: CheckpointDict, *keys: str) -> StateDict:
    """Return the mapping at a place in a checkpoint, an empty one if nothing stands there."""
    found: Any = checkpoint
    for key in keys:
        found = found.get(key)
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            raise CheckpointError(
                f"The checkpoint is damaged or foreign: at {'.'.join(keys)} it has a"
                f" {type(found).__name__} rather than a mapping of names to values."
            )
    return dict(found)


def _restored(name: str, description: object, cls: type) -> object:
    try:
        return importable.restore(description, cls)
    except Exception as error:  # the constructor of any class may run here
        raise CheckpointError(
            f"The hyperparameter {name!r} in the checkpoint was not restored: {error}. Or"
            f" give it: {cls.__name__}.load_from_checkpoint(path, {name}=...)."
        ) from error


def _read_hparams(path: str | os.PathLike[str]) -> Arguments:
    """Read hyperparameters from a file."""
    kind = os.path.splitext(storage.local(path))[1].lower()
    if kind not in (".yaml", ".yml", ".csv"):
        raise ConfigError(
            f"hparams_file={os.fspath(path)!r} is neither .yaml nor .csv. Give a file of one of"
            " these kinds."
        )
    if not os.path.exists(path):
        warn(
            f"hparams_file={os.fspath(path)!r} is missing: the defaults are taken for all"
            " hyperparameters. Leave it out to take those in the checkpoint.",
            category=RuntimeWarning,
        )
        return {}
    import yaml  # only here: it would cost each import of raylit

    from raylit.runtime import bounded_yaml

    try:
        text = bounded_yaml.read_bytes(path)
        if kind == ".csv":
            rows = csv.DictReader(text.splitlines(keepends=True))
            return {row["key"]: _literal(row["value"]) for row in rows}
        found = bounded_yaml.read(text, bounded_yaml.LoaderOfTuples)[1]
    except (ValueError, yaml.YAMLError, KeyError, csv.Error) as error:
        raise ConfigError(
            f"hparams_file={os.fspath(path)!r} is no file of hyperparameters: {error}. Give one"
            " that maps names to values, as a logger writes hparams.yaml; or leave it out."
        ) from error
    if not isinstance(found or {}, dict):
        raise ConfigError(
            f"hparams_file={os.fspath(path)!r} holds a {type(found).__name__}, not names and their"
            " values. Give one that does, or leave it out."
        )
    return dict(found or {})


def _literal(text: str) -> object:
    """Return the Python literal that a text is, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


if TYPE_CHECKING:
    class_only = classmethod
else:

    class class_only(classmethod):
        """A classmethod that refuses to be called on an object.

        On an object, its return value is easily forgotten.
        """

        def __get__(self, instance: object, owner: type | None = None) -> object:
            bound = super().__get__(None, owner)
            if instance is None:
                return bound

            @functools.wraps(bound)
            def refuse(*args: object, **kwargs: object) -> NoReturn:
                name = f"{owner.__name__}.{bound.__name__}"
                raise TypeError(
                    f"{name} was called on an object, which it would leave as it is: write new ="
                    f" {name}(...) on the class."
                )

            return refuse


@contextmanager
def constructed_with(cls: type, values: Arguments | None) -> Iterator[None]:
    """Have `save_hyperparameters` of an object of `cls` keep `values` in a block.

    If they are None it keeps the arguments that it finds on the stack.
    """
    token = given_hparams.set(None if values is None else (cls, values))
    try:
        yield
    finally:
        given_hparams.reset(token)


def _as_hparams(container: object) -> AttributeDict:
    if isinstance(container, _PRIMITIVES):
        raise ConfigError(
            f"save_hyperparameters got the {type(container).__name__} {container!r}. Pass argument"
            " names, or one dict, Namespace or dataclass."
        )
    if isinstance(container, Namespace):
        return AttributeDict(vars(container))
    if dataclasses.is_dataclass(container) and not isinstance(container, type):
        return AttributeDict(dataclasses.asdict(container))
    if isinstance(container, MutableMapping):
        return AttributeDict(container)
    raise ConfigError(
        f"save_hyperparameters cannot keep a {type(container).__name__}. Pass argument names, or"
        " one dict, Namespace or dataclass."
    )


def _constructor_arguments(frame: FrameType | None) -> Arguments:
    """Collect the arguments of the `__init__` calls of one object on the stack.

    From the class that called upwards to the most derived one, which wins. The `__init__` of
    another module that makes this one as a part of itself is the next on the stack, and is not
    meant.
    """
    collected: Arguments = {}
    owner: object = None
    while frame is not None:
        variables = frame.f_locals
        cls = variables.get("__class__")
        is_init = (
            frame.f_code.co_name == "__init__"
            and isinstance(cls, type)
            and issubclass(cls, HasHyperparameters)
        )
        made = variables.get(frame.f_code.co_varnames[0]) if is_init else None
        if is_init and (owner is None or made is owner):
            assert isinstance(cls, type)
            owner = made
            for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:  # type: ignore[misc]
                if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                    collected.update(variables[name])
                elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
                    collected[name] = variables[name]
        elif owner is not None:
            break
        frame = frame.f_back
    return collected
