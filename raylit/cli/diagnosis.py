"""The mistake in a config, in one sentence: the key, where it stands, the nearest right one.

jsonargparse decides whether a config is good. Only when it has refused one, its files and flags are
looked through here, since its own text lists every type that a value might have had.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import torch
from jsonargparse import ArgumentError, ArgumentParser

from raylit import callbacks, loggers, profilers
from raylit.callbacks import Callback
from raylit.cli.foreign import PREFIXES
from raylit.cli.source import ConfigSource, dotted, read_file, where_given
from raylit.core.datamodule import LightningDataModule
from raylit.core.module import LightningModule
from raylit.errors import ConfigError, did_you_mean
from raylit.loggers import Logger
from raylit.runtime.lazy import load_names
from raylit.trainer.trainer import Trainer

for package in (callbacks, loggers, profilers):
    load_names(package)  # a config may name their classes without the path

Path = tuple[str | int, ...]

CLASS_PATH = re.compile(r"(?:\w+\.)+[A-Z]\w*")
PARTS = ("class_path", "init_args", "dict_kwargs")
BASES: dict[str, type] = {
    "model": LightningModule,
    "data": LightningDataModule,
    "optimizer": torch.optim.Optimizer,
    "lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    "trainer.callbacks": Callback,
    "trainer.logger": Logger,
}
SCALARS: dict[str, object] = {
    "seed_everything": bool | int,
    "ckpt_path": str | None,
    "weights_only": bool | None,
    "verbose": bool,
    "return_predictions": bool | None,
    "path": str | None,
    "format": str | None,
    "num_batches": int,
    "tolerance": float,
    "method": str,
    "target": str,
    "layer": str | list[str],
    "baselines": float | None,
    "num_steps": int,
    "internal_batch_size": int,
    "feature_names": list[str] | None,
    "sanity_check": bool,
}
KEYS = (
    "seed_everything",
    "trainer",
    "model",
    "data",
    "optimizer",
    "lr_scheduler",
    "ckpt_path",
    "weights_only",
)
OWN_KEYS = {
    "validate": ("verbose",),
    "test": ("verbose",),
    "predict": ("return_predictions",),
    "explain": (
        "method",
        "target",
        "layer",
        "baselines",
        "num_steps",
        "internal_batch_size",
        "feature_names",
        "sanity_check",
    ),
    "export": ("path", "format", "num_batches", "tolerance"),
}
OWN_FLAGS = {
    "fit": ("resume", "on"),
    "validate": ("on",),
    "test": ("on",),
    "predict": ("output",),
    "explain": ("output",),
    "tune": ("sweep", "resume", "on"),
}


def explain(
    sources: Sequence[ConfigSource], text: str, command: str, inspector: Inspector | None = None
) -> str:
    """Return in one sentence the error in the config that `sources` describe together.

    Args:
        sources: files and flags, in their order.
        text: what jsonargparse says.
        command: which command.
        inspector: looks through them; None: as `raylit` does.
    """
    inspector = inspector or Inspector(command)
    for source in sources:
        try:
            inspector.look_at(source)
        except ConfigError as error:
            return str(error)
    key = re.search(r"Parser key \"([^\"]+)\"", text)
    where = where_given(sources, key[1].split(".")) if key else None
    point = in_short(text, command)
    if key and where == f"--{key[1]}":
        return f"{where}: {point.removeprefix(f'{key[1]}: ')}"
    return f"{where}: {point}" if where else point


def in_short(text: str, command: str) -> str:
    """Return the point of a text of jsonargparse."""
    missing = re.search(
        r"the following arguments are required: (.+)|Key \"(.+)\" is required", text
    )
    if missing:
        name = (missing[1] or missing[2]).strip()
        if name in ("model", "--model"):
            return (
                f"there is no model to {command}: --model package.module.Class, or `model:"
                " {class_path: ...}` in a config file (--config FILE)."
            )
        owner = re.search(r"class_path '([^']+)'", text)
        key = re.search(r"Parser key \"([^\"]+)\"", text)
        return (
            f"{key[1] if key else name}: {owner[1].rpartition('.')[2] if owner else 'it'} needs the"
            f" argument {name.removeprefix('--')}."
        )
    lines = [line.strip(" -") for line in text.splitlines() if line.strip(" -")]
    reasons = [
        line
        for line in lines
        if not re.match(
            r"Parser key|Does not validate|Subtypes:|Errors:|Given value|Expected a <class"
            r" 'NoneType'>|Problem with",
            line,
        )
    ]
    key = re.search(r"Parser key \"([^\"]+)\"", text)
    if key and reasons:
        return f"{key[1]}: {reasons[0]}"
    return lines[0] if lines else "the config is not valid."


class Inspector:
    """Looks through the sources of one config in their order.

    Raises a ConfigError at the first thing that is wrong.

    Args:
        command: whose config it is.
        keys: its keys; None: those of the commands of `raylit`.
        classes: the class of each key for which the config need not name one.
    """

    def __init__(
        self,
        command: str,
        keys: Sequence[str] | None = None,
        classes: Mapping[str, type] | None = None,
    ) -> None:
        self.keys = tuple(keys or (*KEYS, *OWN_KEYS.get(command, ())))
        self.flags = (
            "config",
            "print_config",
            "ray.address",
            "verbose",
            *OWN_FLAGS.get(command, ()),
        )
        # key of each component to the class that was named for it last
        self.classes: dict[str, type] = dict(classes or {})
        self.source = ConfigSource("", {})

    def look_at(self, source: ConfigSource) -> None:
        """Check everything one source says."""
        self.source = source
        for key, value in source.values.items():
            if key not in self.keys:
                options = self.keys if source.root is not None else (*self.keys, *self.flags)
                self._fail(
                    (key,),
                    f"a config has no key {key!r}.{nearest(str(key), options)} It has:"
                    f" {', '.join(self.keys)}.",
                )
            elif key == "trainer":
                if isinstance(value, str) and os.path.isfile(value):
                    value = self._enter(value, (key,))
                if value is not None and not isinstance(value, Mapping):
                    self._fail(
                        (key,),
                        f"trainer is {value!r}, but holds the arguments of the Trainer, such as"
                        " `max_epochs: 3`.",
                    )
                self._arguments((key,), value or {}, self.classes.get(key, Trainer))
                self.source = source
            elif key in BASES or key in self.classes:
                self._component((key,), value)
            elif key in SCALARS:  # others are a script's own, and jsonargparse tells
                self._value((key,), key, value, _scalar_parser(key), _type_text(SCALARS[key]))

    def _component(self, path: Path, value: object) -> None:
        """Check the description of an object.

        It is the name of a class, class_path and init_args, a file with these, or a list of such
        values.
        """
        key = dotted(
            part for part in path if isinstance(part, str) and part != "init_args"
        ).replace("+", "")
        if isinstance(value, list):
            for index, item in enumerate(value):
                self._component((*path, index), item)
            return
        source = self.source
        if isinstance(value, str):
            value = self._enter(value, path) if os.path.isfile(value) else {"class_path": value}
        if not isinstance(value, Mapping):
            return
        if "class_path" in value:
            for name in value:
                if name not in PARTS:
                    belongs = (
                        " An argument of the class stands below init_args:"
                        f" {dotted(path)}.init_args.{name}."
                        if not did_you_mean(name, PARTS)
                        else ""
                    )
                    self._fail(
                        (*path, name),
                        f"{dotted((*path, name))} is not known beside"
                        f" class_path.{did_you_mean(name, PARTS)}{belongs}",
                    )
            self.classes[key] = self._class(path, str(value["class_path"]), BASES.get(key))
        cls = self.classes.get(key) or BASES.get(key)
        if key not in self.classes:
            self._fail(
                path,
                f"{dotted(path)} has no class_path. It names a class, such as `class_path:"
                " package.module.Class`, with its arguments below init_args; or give"
                f" --{dotted(path)} package.module.Class, as a LightningCLI's config wants.",
            )
        assert cls is not None
        self._arguments((*path, "init_args"), value.get("init_args") or {}, cls)
        self._arguments(
            path, {name: item for name, item in value.items() if name not in PARTS}, cls
        )
        self.source = source

    def _arguments(self, path: Path, values: Mapping[str, object], cls: type) -> None:
        """Check arguments of a class.

        These are their names, their types, and the descriptions of objects within them.
        """
        if not isinstance(values, Mapping):
            self._fail(
                path,
                f"{dotted(path)} is {values!r}, but holds arguments of {cls.__name__}, such as"
                " `name: value`.",
            )
        parser, names = arguments_of(cls)
        for given, value in values.items():
            name = str(given).rstrip("+")
            at = (*path, given)
            if parser is None:
                continue
            if name not in names:
                near = nearest(name, names)
                listed = (
                    f" It has: {', '.join(names) or 'none'}."
                    if not near and len(names) <= 12
                    else ""
                )
                if self.source.root is None:  # a flag is corrected as a whole
                    near = near.replace("'", f"'{dotted(path)}.", 1)
                self._fail(
                    at, f"{dotted(at)}: {cls.__name__} has no argument {name!r}.{near}{listed}"
                )
            key = dotted(
                part for part in at if isinstance(part, str) and part != "init_args"
            ).replace("+", "")
            if self._is_component(key, value):
                self._component(at, value)
            else:
                self._value(at, name, value, parser, _annotation(cls, name))

    def _is_component(self, key: str, value: object) -> bool:
        items = value if isinstance(value, list) and value else [value]
        if key in BASES:
            return not isinstance(value, (bool, int, float)) and value is not None
        return all(
            isinstance(item, Mapping) and ("class_path" in item or key in self.classes)
            for item in items
        )

    def _value(
        self, path: Path, name: str, value: object, parser: ArgumentParser, wanted: str
    ) -> None:
        try:
            parser.parse_object({name: value})
        except (ArgumentError, TypeError, ValueError, OverflowError) as error:
            if f'Parser key "{name}"' in str(error):
                if isinstance(value, str) and CLASS_PATH.fullmatch(value):
                    self._class(path, value, None)  # which tells of one that there is not
                self._fail(
                    path,
                    (
                        f"{dotted(path)} is {value!r}, but must be {wanted}."
                        if wanted
                        else f"{dotted(path)}: {in_short(str(error), '')}"
                    ),
                )

    def _class(self, path: Path, name: str, base: type | None) -> type:
        try:
            found = find_class(name, base)
        except ConfigError as error:
            self._fail((*path, "class_path"), f"{dotted(path)}: {error}")
        if base is not None and not issubclass(found, base):
            hint = ""
            if name.startswith(PREFIXES):  # those that raylit has were read as its own
                hint = (
                    " It is one of Lightning that raylit does not have:"
                    " docs/coming-from-lightning.md"
                    " says what to use instead."
                )
            if not hint and any(
                cls.__module__.split(".")[0] in ("lightning", "pytorch_lightning")
                for cls in found.__mro__
            ):
                hint = (
                    " It is derived from Lightning's: write `import raylit as pl` instead of"
                    " `import lightning.pytorch as pl`."
                )
            self._fail(
                (*path, "class_path"), f"{dotted(path)}: {name} is no {base.__name__}.{hint}"
            )
        return found

    def _enter(self, file: str, path: Path) -> object:
        """Go on in a file that is named as the value of a key."""
        self.source = read_file(file, dotted(path))
        return self.source.values

    def _fail(self, path: Path, what: str) -> NoReturn:
        # A flag that names the key already
        if self.source.root is None and what.startswith(self.source.name[2:]):
            raise ConfigError(f"--{what}")
        raise ConfigError(f"{self.source.where(path)}: {what}")


def nearest(word: str, options: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` as `did_you_mean`.

    An option that begins with `word` comes first.
    """
    options = list(options)
    longer = [option for option in options if option.startswith(word)]
    return f" Did you mean '{longer[0]}'?" if longer and word else did_you_mean(word, options)


def find_class(path: str, base: type | None = None) -> type:
    """Return the class that a class_path, or the bare name of a known class, means.

    Raises:
        ConfigError: it cannot be imported; the text says why.
    """
    module_name, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")):
        raise ConfigError(f"{path!r} is no path of a class, such as package.module.Class.")
    if not module_name:
        known = (
            {cls.__name__: cls for cls in _subclasses(base or object)} if base is not None else {}
        )
        if name not in known:
            example = f"package.module.{name}"
            raise ConfigError(
                f"there is no class {name!r}.{did_you_mean(name, known)} Give its whole path, such"
                f" as {example}."
            )
        return known[name]
    module: object
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"importing {module_name} failed: {error}. Install it, or correct the import."
            ) from error
        raise ConfigError(
            f"there is no module {error.name!r}, neither in the current folder nor"
            f" installed.{_near_module(error.name)}"
        ) from error
    except Exception as error:
        frame = next(iter(traceback.extract_tb(error.__traceback__)[::-1]), None)
        place = f" ({os.path.relpath(frame.filename)}, line {frame.lineno})" if frame else ""
        raise ConfigError(
            f"importing {module_name} failed: {type(error).__name__}: {error}{place}"
        ) from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        names = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and (base is None or issubclass(value, base))
        ]
        raise ConfigError(f"{module_name} has no class {name!r}.{did_you_mean(name, names)}")
    return found


def arguments_of(cls: type) -> tuple[ArgumentParser | None, list[str]]:
    """Return a parser for the arguments of a class, and their names.

    No parser if they cannot be found out.
    """
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, print_config=None)
    try:
        names = parser.add_class_arguments(
            cls, instantiate=False, fail_untyped=False, sub_configs=True
        )
    except (TypeError, ValueError):
        return None, []
    return parser, names


def _scalar_parser(key: str) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, print_config=None)
    parser.add_argument(f"--{key}", type=SCALARS[key])
    return parser


def _annotation(cls: type, name: str) -> str:
    for owner in cls.__mro__:  # an argument may have come through **kwargs
        parameter = None
        if "__init__" in vars(owner):
            parameter = inspect.signature(owner.__init__).parameters.get(name)  # type: ignore[misc]
        if parameter is not None:
            return (
                ""
                if parameter.annotation is inspect.Parameter.empty
                else _type_text(parameter.annotation)
            )
    return ""


def _type_text(kind: object) -> str:
    text = kind if isinstance(kind, str) else inspect.formatannotation(kind)
    text = re.sub(r"\b(?:[a-z_]\w*\.)+", "", text)
    optional = re.fullmatch(r"Optional\[(.+)\]", text)
    text = f"{optional[1]} | None" if optional else text
    return text.replace(" | ", " or ").replace("None", "null")


def _near_module(name: str) -> str:
    parent, _, last = name.rpartition(".")
    folders = [os.getcwd()]
    if parent:
        folders = list(getattr(importlib.import_module(parent), "__path__", []))
    names = [
        os.path.splitext(entry)[0]
        for folder in folders
        if os.path.isdir(folder)
        for entry in os.listdir(folder)
    ]
    return (
        did_you_mean(last, names).replace("'", f"'{parent}.", 1)
        if parent
        else did_you_mean(last, names)
    )


def _subclasses(base: type) -> list[type]:
    found = [base]
    for cls in found:  # which grows
        below: list[type] = cls.__subclasses__()
        found.extend(sub for sub in below if sub not in found)
    return found
