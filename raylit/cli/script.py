"""`check`, `explain`, `export` and `tune` of a user's script with a LightningCLI.

`python main.py tune --config config.yaml --sweep sweep.yaml` does the same as `raylit tune`, with
the classes, links, arguments and hooks of the script's own CLI.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_type_hints

import yaml
from jsonargparse import ArgumentError, Namespace

from raylit.callbacks import Callback
from raylit.checkpoint import find
from raylit.cli import items
from raylit.cli.command import exit_code, run_with, take_options
from raylit.cli.config import (
    ARGUMENTS,
    LOADING,
    SWITCHES,
    Config,
    as_list,
    flags_of_items,
    take_from_environment,
)
from raylit.cli.help import OF_SCRIPTS, help_of
from raylit.cli.source import ConfigSource, read_arguments
from raylit.core.datamodule import LightningDataModule
from raylit.core.module import LightningModule
from raylit.errors import ConfigError
from raylit.runtime.aliases import PlainDict
from raylit.trainer.trainer import Trainer

if TYPE_CHECKING:
    from raylit.cli.lightning_cli import LightningCLI
    from raylit.cli.parser import LightningArgumentParser


def command_of(args: Sequence[str], own: Mapping[str, object]) -> str | None:
    """Return which of these commands the arguments of a script begin with, if any.

    Args:
        args: the arguments of the script.
        own: the subcommands that its CLI has by itself, which win.
    """
    first = args[0] if args else ""
    return first if first in OF_SCRIPTS and first not in own else None


def run(cli: LightningCLI, command: str, args: Sequence[str]) -> None:
    """Run a command of `raylit` with the objects that a script's CLI makes, and end the process.

    Args:
        cli: the CLI, before it has read anything.
        command: which.
        args: what stands behind it.

    Raises:
        SystemExit: always, with the command's exit code.
    """
    reader = ScriptReader(cli)
    if {"-h", "--help"} & set(args):
        print(help_of(command, reader.program))
        sys.exit(0)

    def work() -> None:
        options, rest = take_options(command, list(args))
        if options.ray_address:
            os.environ["RAY_ADDRESS"] = options.ray_address
        run_with(command, rest, options, reader)

    sys.exit(exit_code(work, f"{reader.program} {command}", "--verbose" in args))


@dataclass(kw_only=True)
class ScriptConfig(Config):
    """A command for whose run the CLI of a script makes the objects.

    Attributes:
        cli: a copy of the CLI, of this config alone.
    """

    cli: LightningCLI

    def __post_init__(self) -> None:
        self._is_made = False

    def origin(self) -> find.Origin:
        """Return of which model a checkpoint is to be that `best` or `last` finds."""
        model, _ = self.make_model_and_data()
        cls = type(model)
        return find.Origin(f"{cls.__module__}.{cls.__qualname__}", dict(model.hparams))

    def take(self, name: str, value: object) -> bool:
        """Leave the arguments as they are: those of a checkpoint were taken when it was read."""
        return False

    def make_trainer(self, more_callbacks: Sequence[Callback] = (), **settings: object) -> Trainer:
        """Return the Trainer, as the CLI makes it."""
        self._make()
        own = self.cli.trainer_defaults
        self.cli.trainer_defaults = {
            **own,
            "callbacks": [*as_list(own.get("callbacks")), *more_callbacks],
        }
        try:
            self.cli.trainer = self.cli.instantiate_trainer(**settings)
        finally:
            self.cli.trainer_defaults = own
        self.cli.after_instantiate_classes()
        return self.cli.trainer

    def make_model_and_data(self) -> tuple[LightningModule, LightningDataModule | None]:
        """Return the module, with its optimizer, and the datamodule, as the CLI makes them."""
        self._make()
        return self.cli.model, self.cli.datamodule

    def _make(self) -> None:
        """Let the CLI make model and data, and have its Trainer's parts made."""
        if not self._is_made:
            self._is_made = True
            self.cli.config = self.values
            self.cli.before_instantiate_classes()
            self.cli.instantiate_classes()


class ScriptReader:
    """Reads the arguments of a script's commands, with the CLI's own parser.

    Args:
        cli: the CLI of the script.
    """

    def __init__(self, cli: LightningCLI) -> None:
        self.cli = cli
        self.program = program_of_script()
        self._parsers: dict[str, LightningArgumentParser] = {}

    def read(self, command: str, args: Sequence[str], needs_model: bool = True) -> ScriptConfig:
        """Return the config that the arguments of a command describe."""
        switches = ("--verbose", "--print_config", "--help", *SWITCHES.get(command, ()))
        sources = read_arguments(args, switches)
        parser = self._parser(command)
        args, named = items.split(args)
        try:
            values = parser.parse_args(list(args))
            if named:
                trainer = yaml.safe_load(parser.dump(values, skip_unset=False))["trainer"]
                values = parser.parse_args([*args, *flags_of_items(trainer, named)])
            if needs_model:
                take_from_environment(values, sources)
            return self._config(command, values, args, sources)
        except ArgumentError as error:
            raise ConfigError(str(error)) from error

    def again(self, base: Mapping[str, object], flags: Sequence[str]) -> ScriptConfig:
        """Return a config that was kept as plain data, with flags over it."""
        parser = self._parser("tune")
        values = parser.parse_args(list(flags), parser.parse_object(copy.deepcopy(dict(base))))
        return self._config("tune", values, flags, [])

    def described(self, base: Mapping[str, object]) -> PlainDict:
        """Return plain data of a config in which model and data name their classes."""
        whole = dict(base)
        for key, made in (("model", self.cli.model_class), ("data", self.cli.datamodule_class)):
            given = whole.get(key)
            if made is None or (isinstance(given, Mapping) and "class_path" in given):
                continue
            cls = made if isinstance(made, type) else get_type_hints(made)["return"]
            path = f"{cls.__module__}.{cls.__qualname__}"
            whole[key] = {"class_path": path, "init_args": given or {}}
        return whole

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_parsers": {}}  # large; each process makes its own

    def _parser(self, command: str) -> LightningArgumentParser:
        """Return the parser of a command: that of `fit`, with the command's own arguments."""
        if command not in self._parsers:
            own = self.cli.parser_kwargs
            shared = {name: value for name, value in own.items() if name not in _subcommands(own)}
            kwargs = {**shared, **own.get("fit", {}), "exit_on_error": False}
            parser = self.cli.init_parser(**kwargs)
            self.cli.add_all_arguments(parser)
            for name, (kind, default) in {**LOADING, **ARGUMENTS[command]}.items():
                parser.add_argument(f"--{name}", type=kind, default=default)
            self._parsers[command] = parser
        return self._parsers[command]

    def _config(
        self,
        command: str,
        values: Namespace,
        args: Sequence[str],
        sources: list[ConfigSource],
    ) -> ScriptConfig:
        cli = copy.copy(self.cli)
        cli.parser = self._parser(command)
        cli.config = values
        cli.subcommand = None
        cli._args = list(args)
        cli.save_config_callback = None
        cli.take_hyperparameters()
        return ScriptConfig(command, cli.config, cli.parser, sources, self.program, cli=cli)


def program_of_script() -> str:
    """Return the command that runs this script."""
    return f"python {os.path.relpath(sys.argv[0])}"


def _subcommands(kwargs: Mapping[str, object]) -> set[str]:
    return {name for name in ("fit", "validate", "test", "predict") if name in kwargs}
