"""Makes the objects of a trial from classes and a Trainer, as `Tuner.sweep` is given them."""

from __future__ import annotations

import copy
import importlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from raylit.core.datamodule import LightningDataModule
from raylit.core.module import LightningModule
from raylit.errors import did_you_mean
from raylit.runtime.aliases import Arguments, Loaders, PlainDict, StateDict
from raylit.trainer.trainer import Trainer
from raylit.tune.aliases import Values
from raylit.tune.space import SCOPES, Key, SweepError, examples
from raylit.tune.trial import Made

T = TypeVar("T")
PARTS_OF_TRAINER = ("callbacks", "logger")


@dataclass
class Classes:
    """Makes a trial's objects by calling classes, or functions, with its values.

    Attributes:
        trainer: its arguments are the trial's, but for those the values name.
        model: called with the `model.*` values.
        data: called with the `data.*` values; an object is the same for all; None.
        loaders: handed to `Trainer.fit`.
        settings: arguments of the Trainer that follow from the sweep's resources.
    """

    trainer: Trainer
    model: Callable[..., LightningModule]
    data: Callable[..., LightningDataModule] | LightningDataModule | None = None
    loaders: dict[str, Loaders] = field(default_factory=dict)
    settings: Arguments = field(default_factory=dict)

    def __call__(self, values: Values) -> Made:
        """Return the objects of a trial with these values."""
        scopes: dict[str, Arguments] = {scope: {} for scope in SCOPES}
        for key, value in values.items():
            scope, _, argument = key.partition(".")
            if argument:
                scopes[scope][argument] = value
        trainer = make_trainer(self.trainer, self.settings | scopes["trainer"])
        model = _make(values.get("model"), self.model, scopes["model"])
        data = self.data
        if data is not None and not isinstance(data, LightningDataModule):
            data = _make(values.get("data"), data, scopes["data"])
        return Made(trainer, model, data, self.loaders)

    def best_config(self, values: Mapping[str, object], seed: int) -> str:
        """Return the values as YAML, by the keys of a config."""
        nested: PlainDict = {"seed_everything": seed}
        for key, value in values.items():
            *parents, last = key.split(".")
            inner = nested
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
        return str(yaml.safe_dump(nested, sort_keys=False))

    # ---- before any trial ----

    def check(self, space: Mapping[str, object]) -> None:
        """Check that the module, the datamodule and the Trainer take the values of a space.

        Raises:
            SweepError: it does not.
        """
        for key, value in space.items():
            path = ("space", key)
            scope, _, argument = key.partition(".")
            if key in ("optimizer", "lr_scheduler", "seed_everything") or scope in (
                "optimizer",
                "lr_scheduler",
            ):
                raise SweepError(
                    f"{key}: what Tuner.sweep is given has no {scope}. Make it in"
                    " configure_optimizers, and sweep the arguments of the module.",
                    path,
                )
            drawn = list(examples(value))
            if scope == "trainer":
                for one in drawn:
                    make_trainer(self.trainer, {argument: one}, path)
            elif not argument:
                for one in drawn:
                    build(one, path)
            else:
                made = self.model if scope == "model" else self.data
                if made is None or isinstance(made, LightningDataModule):
                    raise SweepError(
                        "The space has data.* keys, but "
                        f"{'there is no datamodule' if made is None else 'datamodule is an object'}"
                        ". Give its class, or a function that makes it.",
                        path,
                    )
                check_argument(made, argument, drawn, key, path)


def make_trainer(trainer: Trainer, values: dict[str, object], path: Key = ()) -> Trainer:
    """Return a Trainer with some arguments replaced.

    `callbacks.EarlyStopping.patience` is a callback's.

    Raises:
        SweepError: there is no such argument or callback.
        ConfigError: a value is out of range.
    """
    own: StateDict = {}
    parts: list[tuple[str, str, str, object]] = []
    for name, value in values.items():
        part, _, rest = name.partition(".")
        if part in PARTS_OF_TRAINER and rest:
            cls, _, argument = rest.partition(".")
            parts.append((part, cls, argument, value))
        else:
            own[name] = value
    made = trainer.replaced(**{"enable_progress_bar": False, "enable_model_summary": False, **own})
    if parts:  # the Trainer's own are the same in all that are made from it
        made.callbacks = [copy.deepcopy(one) for one in made.callbacks]
        made.loggers = [copy.deepcopy(one) for one in made.loggers]
    for part, cls, argument, value in parts:
        owners: Sequence[object] = made.callbacks if part == "callbacks" else made.loggers
        _set(owners, f"trainer.{part}", cls, argument, value, path)
    return made


def _set(
    owners: Sequence[object], key: str, cls: str, argument: str, value: object, path: Key
) -> None:
    names = [type(one).__name__ for one in owners]
    if cls not in names:
        raise SweepError(
            f"{key}.{cls}: the Trainer has no such one.{did_you_mean(cls, names)} It has:"
            f" {', '.join(names)}.",
            path,
        )
    owner = owners[names.index(cls)]
    known = [name for name in inspect.signature(type(owner)).parameters if name in vars(owner)]
    if argument not in known:
        raise SweepError(
            f"{key}.{cls}: {argument!r} is no argument of it that can be"
            f" set.{did_you_mean(argument, known)} There are: {', '.join(known)}.",
            path,
        )
    setattr(owner, argument, value)


def _make(spec: object, factory: Callable[..., T], arguments: Arguments) -> T:
    """Call the factory, or the class of a class_path; the arguments may be descriptions too."""
    if isinstance(spec, Mapping):
        inner = dict(spec.get("init_args") or {}) | arguments
        made: T = build({"class_path": spec["class_path"], "init_args": inner})
        return made
    return factory(**{name: build(value) for name, value in arguments.items()})


def build(spec: object, path: Key = ()) -> Any:
    """Return the object that a mapping with class_path and init_args describes; else the value.

    Raises:
        SweepError: there is no such class, or it has no such argument.
    """
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        return spec
    module, _, name = str(spec["class_path"]).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SweepError(
            f"class_path: {spec['class_path']!r} cannot be imported: {error}.", path
        ) from error
    arguments = spec.get("init_args") or {}
    for argument, value in arguments.items():
        check_argument(cls, argument, [value], f"{name}.{argument}", path)
    return cls(**{key: build(value, path) for key, value in arguments.items()})


def check_argument(
    factory: Callable[..., object], argument: str, values: Sequence[object], key: str, path: Key
) -> None:
    """Find out whether a class or function takes an argument, and values of it.

    Raises:
        SweepError: it does not.
    """
    parameters = inspect.signature(factory).parameters
    name = getattr(factory, "__name__", type(factory).__name__)
    if argument not in parameters:
        if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
            return
        scope = key.partition(".")[0]
        near = did_you_mean(argument, parameters).replace("'", f"'{scope}.", 1)
        raise SweepError(
            f"{key}: {name} has no argument {argument!r}.{near} It has: {', '.join(parameters)}.",
            path,
        )
    wanted = _annotation(factory, argument)
    for value in values:
        if not fits(value, wanted):
            text = inspect.formatannotation(wanted)
            raise SweepError(f"{key} is {value!r}, but must be {text}.", path)


def _annotation(factory: Callable[..., object], argument: str) -> object:
    function = factory.__init__ if isinstance(factory, type) else factory  # type: ignore[misc]
    try:
        return get_type_hints(function).get(argument, Any)
    except (NameError, TypeError):
        return Any  # of a name that is not there when the program runs


def fits(value: object, wanted: object) -> bool:
    """Tell whether a plain value is of a type; a type that is not plain takes everything."""
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in get_args(wanted))
    if origin is Literal:
        return value in get_args(wanted)
    if wanted is None or wanted is type(None):
        return value is None
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if wanted is int:
        whole = isinstance(value, int) or (hasattr(value, "__index__"))
        return whole and not isinstance(value, bool)
    if wanted in (str, bool):
        return isinstance(value, wanted)
    return True
