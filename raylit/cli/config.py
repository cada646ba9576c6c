"""Parser of configs, the config made of files and flags, and the objects a config describes."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
import yaml
from jsonargparse import (
    ArgumentError,
    ArgumentParser,
    Namespace,
    set_loader,
)
from jsonargparse._loaders_dumpers import yaml_load

from raylit.callbacks import Callback
from raylit.checkpoint import find
from raylit.cli import construct, items
from raylit.cli.construct import whole_numbers_first
from raylit.cli.diagnosis import BASES, explain, find_class
from raylit.cli.foreign import Parser, as_read
from raylit.cli.optimizer import ReduceLROnPlateau, give_optimizer
from raylit.cli.source import ConfigSource, as_flag, dotted, read_arguments, where_given
from raylit.cli.told import ConfigFile, classes_of, read_next, telling
from raylit.core.datamodule import LightningDataModule
from raylit.core.module import LightningModule
from raylit.errors import CheckpointError, ConfigError
from raylit.runtime import bounded_yaml
from raylit.runtime.aliases import Arguments, PlainDict
from raylit.runtime.masked_config import unmasked
from raylit.runtime.rng import seed_everything
from raylit.trainer.settings import arguments_of_environment
from raylit.trainer.trainer import Trainer
from raylit.version import __version__

# What the methods of Trainer take beside model and data, as in LightningCLI: name to type and
# default.
ARGUMENTS: dict[str, dict[str, tuple[object, object]]] = {
    "check": {},
    "fit": {},
    "validate": {"verbose": (bool, True)},
    "test": {"verbose": (bool, True)},
    "predict": {"return_predictions": (bool | None, None)},
    "explain": {
        "method": (str, "integrated_gradients"),
        "target": (str, "prediction"),
        "layer": (str | list[str], []),
        "baselines": (float | None, None),
        "num_steps": (int, 50),
        "internal_batch_size": (int, 256),
        "feature_names": (list[str] | None, None),
        "sanity_check": (bool, False),
    },
    "export": {
        "path": (str | None, None),
        "format": (str | None, None),
        "num_batches": (int, 4),
        "tolerance": (float, 1e-5),
    },
    "tune": {},
}
# Arguments no config gives
MADE_BY_OTHERS: dict[str, set[str]] = {
    "optimizer": {"params"},
    "lr_scheduler": {"optimizer"},
}
_are_elsewhere: ContextVar[bool] = ContextVar("_are_elsewhere", default=False)
SWITCHES = {"fit": ("--resume",)}  # flags without a value, of some commands
LOADING: dict[str, tuple[object, object]] = {
    "ckpt_path": (str | None, None),
    "weights_only": (bool | None, None),
}


def load_yaml(text: str) -> object:
    """Read a text that jsonargparse takes for YAML: a flag's value, or a file named in a config."""
    bounded_yaml.read(text)
    return read_next(as_read(yaml_load(text)))  # type: ignore[no-untyped-call]


set_loader("yaml", load_yaml, exceptions=(yaml.YAMLError,))


def make_parser(command: str, needs_model: bool = True) -> ArgumentParser:
    """Return the parser of a command's config; its keys are those of LightningCLI."""
    parser = Parser(
        prog=f"raylit {command}", exit_on_error=False, allow_abbrev=False, print_config=None
    )
    parser.add_argument("-c", "--config", action=ConfigFile)
    parser.add_argument("--seed_everything", type=bool | int, default=True)
    parser.add_class_arguments(
        Trainer, "trainer", instantiate=False, fail_untyped=False, sub_configs=True
    )
    whole_numbers_first(parser)
    # as in Python, and so that the config that is kept with the run says it
    variables = arguments_of_environment(Trainer.__name__, Trainer.__init__)
    parser.set_defaults({f"trainer.{name}": value for name, (_, _, value) in variables.items()})
    parser.add_subclass_arguments(
        LightningModule, "model", fail_untyped=False, required=needs_model
    )
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False, required=False)
    parser.add_subclass_arguments(
        (torch.optim.Optimizer,),
        "optimizer",
        instantiate=False,
        fail_untyped=False,
        skip=MADE_BY_OTHERS["optimizer"],
        required=False,
    )
    schedulers = (torch.optim.lr_scheduler.LRScheduler, ReduceLROnPlateau)
    parser.add_subclass_arguments(
        schedulers,
        "lr_scheduler",
        instantiate=False,
        fail_untyped=False,
        skip=MADE_BY_OTHERS["lr_scheduler"],
        required=False,
    )
    for name, (kind, default) in {**LOADING, **ARGUMENTS[command]}.items():
        parser.add_argument(f"--{name}", type=kind, default=default)
    return parser


@dataclass
class Config:
    """The config of a command: checked, complete, nothing made yet.

    Attributes:
        command: which command.
        values: every key of the config.
        parser: that made it.
        sources: the files and flags it came from.
        program: what the user typed before the command.
    """

    command: str
    values: Namespace
    parser: ArgumentParser
    sources: list[ConfigSource]
    program: str = "raylit"

    @property
    def text(self) -> str:
        """The config as YAML, which reproduces the run."""
        return (
            f"# {self.program} {self.command} --config FILE    (raylit {__version__}, torch"
            f" {torch.__version__})\n{self._body()}"
        )

    def _body(self) -> str:
        short = str(self.parser.dump(self.values))
        meant = {
            key: value
            for key, value in self.values.clone(with_meta=False).as_dict().items()
            if key != "config"
        }
        with contextlib.suppress(ArgumentError, TypeError):
            again = self.parser.parse_string(short).as_dict()
            if {key: value for key, value in again.items() if key != "config"} == meant:
                return short
        # A null that was given against a default must stay
        return str(self.parser.dump(self.values, skip_unset=False))

    def where(self, *path: str) -> str | None:
        """Return in words where the key at `path` was given last; None if it was not."""
        return where_given(self.sources, path)

    def seed(self) -> None:
        """Seed the random numbers, as `seed_everything` says, which then is the seed itself."""
        self.values.seed_everything = seed(self.values.seed_everything)

    def take(self, name: str, value: object) -> bool:
        """Take the value of an argument of the model from a checkpoint, unless a flag gave it.

        Returns whether that changed the config.

        Raises:
            CheckpointError: the value names what a checkpoint may not name.
        """
        own = self.values.model.get("init_args") or {}
        if name not in own or any(
            source.root is None and name in argument_names(source) for source in self.sources
        ):
            return False
        before = self.values.model.clone(with_meta=False).as_dict()
        spec = {
            "class_path": before["class_path"],
            "init_args": {**before["init_args"], name: value},
        }
        cls = find_class(before["class_path"], LightningModule)
        construct.refuse_descriptions(value, cls)
        try:
            with construct.reading_checkpoint(value, cls, trusted=self.values):
                self.values = self.parser.parse_object({"model": spec}, self.values)
        except ArgumentError as error:
            reason = construct.why_refused(error, cls)
            raise CheckpointError(
                f"The value of model.{name} in the checkpoint is not taken: {reason} Give it with"
                f" --model.{name}."
            ) from error
        return bool(self.values.model.clone(with_meta=False).as_dict() != before)

    def origin(self) -> find.Origin:
        """Return of which model a checkpoint is to be that `best` or `last` finds."""
        named = self.values.model.class_path
        given = self.values.model.get("init_args") or {}
        return find.Origin(_path_of(find_class(named, LightningModule)), dict(given))

    def make_trainer(self, more_callbacks: Sequence[Callback] = (), **settings: object) -> Trainer:
        """Return the Trainer.

        Args:
            more_callbacks: callbacks that it gets besides the config's.
            settings: arguments that win over the config's.

        Raises:
            ConfigError: an argument is out of range.
        """
        only = Namespace(trainer=self.values.trainer)  # type: ignore[no-untyped-call]
        # What no type asks for is left as it stands, and the Trainer says that it is wrong: it
        # would be made before anybody could look at it.
        with construct.typed_only():
            arguments: Arguments = instantiate(self.parser, only).trainer.as_dict()
        callbacks = [*as_list(arguments["callbacks"]), *more_callbacks]
        try:
            return Trainer(**{**arguments, **settings, "callbacks": callbacks})
        except ConfigError as error:
            # an argument that is out of range comes first in the text
            name = re.match(r"\w+", str(error))
            where = None
            if name is not None:
                where = self.where("trainer", name[0]) or variable_of(name[0])
            if where is None:
                raise
            raise ConfigError(f"{where}: {error}") from error

    def make_model_and_data(self) -> tuple[LightningModule, LightningDataModule | None]:
        """Return the module, with its optimizer, and the datamodule."""
        both = Namespace(model=self.values.model, data=self.values.data)  # type: ignore[no-untyped-call]
        made = instantiate(self.parser, both)
        give_optimizer(made.model, self.values.optimizer, self.values.lr_scheduler)
        return made.model, made.data


def _path_of(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def as_list(callbacks: Iterable[Callback] | Callback | None) -> list[Callback]:
    """Return callbacks as the Trainer takes them, one or several or None, as a list."""
    if callbacks is None:
        return []
    return [callbacks] if isinstance(callbacks, Callback) else list(callbacks)


class ConfigReader(Protocol):
    """Reads the arguments of a program's commands: of `raylit`, or of a user's LightningCLI."""

    program: str

    def read(self, command: str, args: Sequence[str], needs_model: bool = True) -> Config:
        """Return the config that the arguments of a command describe.

        Raises:
            ConfigError: something in it is wrong.
        """

    def again(self, base: Mapping[str, object], flags: Sequence[str]) -> Config:
        """Return a config that was kept as plain data, with flags over it, in any process.

        Raises:
            ConfigError: a flag does not fit.
        """

    def described(self, base: Mapping[str, object]) -> PlainDict:
        """Return plain data of a config in which model and data name their classes."""


class CommandReader:
    """Reads the arguments of `raylit`."""

    program = "raylit"

    def read(self, command: str, args: Sequence[str], needs_model: bool = True) -> Config:
        """Return the config that the arguments of a command describe."""
        return parse(command, args, needs_model)

    def again(self, base: Mapping[str, object], flags: Sequence[str]) -> Config:
        """Return a config that was kept as plain data, with flags over it."""
        parser = _parser_of_trials()
        values = parser.parse_args(list(flags), parser.parse_object(copy.deepcopy(dict(base))))
        return Config("tune", values, parser, [])

    def described(self, base: Mapping[str, object]) -> PlainDict:
        """Return the data as it is: the config names the classes."""
        return dict(base)


@lru_cache(maxsize=1)
def _parser_of_trials() -> ArgumentParser:
    return make_parser("tune", needs_model=False)


def parse(command: str, args: Sequence[str], needs_model: bool = True) -> Config:
    """Return the config that the arguments of a command describe.

    Raises:
        ConfigError: something in it is wrong; the text says what and where.
    """
    args, named = items.split(args)
    if named:
        trainer = yaml.safe_load(parse(command, args, needs_model).text)["trainer"]
        flags = flags_of_items(trainer, named)
        config = parse(command, [*args, *flags], needs_model)
        config.sources += [ConfigSource(f"--{key}", {}) for key in named]
        return config
    switches = ("--verbose", "--print_config", "--help", *SWITCHES.get(command, ()))
    sources = read_arguments(args, switches)
    parser = make_parser(command, needs_model)
    try:
        with telling(classes_of(args)):
            values = parser.parse_args(list(args))
    except ConfigError:
        raise
    except SystemExit as error:
        raise ConfigError(
            f"a module that the config names ended the process when it was imported (exit code"
            f" {error.code}). Put what runs there below `if __name__ == '__main__':`."
        ) from error
    # Besides its own error, jsonargparse lets pass what a value made go wrong within it.
    except Exception as error:
        found = explain(sources, str(error), command)
        raise ConfigError(_with_variable(found, sources)) from error
    if needs_model:
        take_from_environment(values, sources)
    if not isinstance(values.trainer, Namespace):
        raise ConfigError(explain(sources, "trainer holds the arguments of the Trainer.", command))
    return Config(command, values, parser, sources)


def flags_of_items(trainer: dict[str, object], named: Mapping[str, str]) -> list[str]:
    """Return flags that give callbacks and loggers of a config the values that keys by name say.

    Args:
        trainer: the arguments of the Trainer in the config, which are changed.
        named: the keys, such as `trainer.callbacks.EarlyStopping.patience`, and their values.

    Raises:
        ConfigError: the config has none of a class, or several; or a value cannot be read.
    """
    changed = {items.put(trainer, key, _value(key, text)) for key, text in named.items()}
    return [f"--trainer.{part}={as_flag(trainer[part])}" for part in sorted(changed)]


def _value(key: str, text: str) -> object:
    """Return the value of a flag, as the parser reads it; a value that is not YAML is a text.

    Raises:
        ConfigError: it is beyond the bounds.
    """
    try:
        return load_yaml(text)
    except bounded_yaml.RefusedError as error:
        raise ConfigError(f"--{key}: its value cannot be read: {error.problem}.") from None
    except yaml.YAMLError:
        return text


def variable_of(argument: str) -> str | None:
    """Return in words which environment variable gives an argument of the Trainer, if one does."""
    variables = arguments_of_environment(Trainer.__name__, Trainer.__init__)
    if argument not in variables:
        return None
    variable, given, _ = variables[argument]
    return f"The environment variable {variable}={given}"


def _with_variable(text: str, sources: Sequence[ConfigSource]) -> str:
    """Return an error text, with the environment variable that gave the wrong argument, if any."""
    found = re.match(r"trainer\.(\w+)", text)
    if found is None or where_given(sources, ("trainer", found[1])):
        return text
    variable = variable_of(found[1])
    return text if variable is None else f"{variable}: {text.rstrip('.')}. Correct it, or unset it."


@contextlib.contextmanager
def secrets_elsewhere() -> Iterator[None]:
    """Read configs that run on other machines, whose environment has the secrets, in a block."""
    token = _are_elsewhere.set(True)
    try:
        yield
    finally:
        _are_elsewhere.reset(token)


def take_from_environment(
    values: Namespace, sources: Sequence[ConfigSource], below: str | None = None
) -> None:
    """Put secrets from the environment into the places where a kept config has `***`.

    Args:
        values: the config, which is changed.
        sources: the files and flags it came from.
        below: the key that the config stands below, of a LightningCLI with subcommands.

    Raises:
        ConfigError: the environment does not have them.
    """
    if _are_elsewhere.get():
        return
    missing: dict[tuple[str | int, ...], str] = {}
    unmasked(values if below is None else values[below], missing=missing)
    if not missing:
        return
    lines = []
    for path, variable in missing.items():
        where = where_given(sources, [str(part) for part in path])
        lines.append(f"{where or 'a config'}: {dotted(path)} is masked (***): set {variable}.")
    raise ConfigError(
        "\n".join(lines)
        + "\nA config that is kept has no secrets. Give them by these environment variables, or as"
        " flags."
    )


def seed(wanted: bool | int) -> bool | int:
    """Seed the random numbers with `wanted`; True: PL_GLOBAL_SEED or 0, False: not at all.

    Returns the seed, or False.
    """
    return (
        False
        if wanted is False
        else seed_everything(None if wanted is True else wanted, workers=True)
    )


def instantiate(parser: ArgumentParser, values: Namespace) -> Namespace:
    """Return `values` with objects in place of their descriptions.

    A module's hyperparameters are as the config has them.

    Raises:
        Exception: whatever a constructor raised.
    """

    def hyperparameters(
        cls: type, arguments: dict[str, object], links: dict[str, object]
    ) -> dict[str, object] | None:
        given = next(
            (values[key] for key in ("model", "data") if key in values and is_of(values[key], cls)),
            None,
        )
        plain = given.init_args.as_dict() if given is not None and "init_args" in given else {}
        if not any(
            isinstance(value, Mapping) and "class_path" in value for value in plain.values()
        ):
            return None
        # Rather than the objects made of them
        return {name: plain.get(name, value) for name, value in arguments.items()}

    return construct.instantiate(parser, values, hyperparameters)


def argument_names(flag: ConfigSource) -> set[str]:
    """Return the names of the arguments that a flag gives to the model."""
    given = flag.values.get("model")
    return {*given, *(given.get("init_args") or {})} if isinstance(given, dict) else set()


def is_of(spec: object, cls: type) -> bool:
    """Tell whether `spec` is the part of a config that describes an object of `cls`."""
    return (
        isinstance(spec, Namespace)
        and str(spec.get("class_path")).rpartition(".")[2] == cls.__name__
    )


def describe(args: Sequence[str]) -> None:
    """Print the arguments of the Trainer (`--trainer.help`) or of a class (`--model.help CLASS`).

    A class is named with its module, such as `examples.digits.LitDigits`.

    Raises:
        ConfigError: no class is named, or it cannot be imported.
    """
    flag = next(arg for arg in args if arg.partition("=")[0].endswith(".help"))
    key = flag.partition("=")[0][2:].removesuffix(".help")
    named = flag.partition("=")[2]
    if key == "trainer":
        cls: type = Trainer
    else:
        if key not in BASES:
            raise ConfigError(
                f"--{key}.help: there is no such flag. There are:"
                f" {', '.join(f'--{name}.help' for name in ('trainer', *BASES))}."
            )
        name = named or next(iter(args[args.index(flag) + 1 :]), None)
        if name is None:
            raise ConfigError(
                f"--{key}.help wants a class, such as --{key}.help package.module.Class."
            )
        cls = find_class(name, BASES[key])
    parser = ArgumentParser(add_help=False, usage="", print_config=None)
    parser.add_class_arguments(
        cls, key, instantiate=False, fail_untyped=False, skip={*MADE_BY_OTHERS.get(key, ())}
    )
    print(parser.format_help().partition("\n\n")[2].strip())
