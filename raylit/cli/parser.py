"""LightningArgumentParser.

Jsonargparse's parser with shortcuts for the classes that a training is made of.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from jsonargparse import (  # type: ignore[attr-defined]
    class_from_function,
    register_unresolvable_import_paths,
    set_parsing_settings,
)
from torch.optim import Optimizer

from raylit import callbacks, loggers, profilers
from raylit.callbacks import Callback
from raylit.cli import items
from raylit.cli.construct import whole_numbers_first
from raylit.cli.diagnosis import Inspector, explain
from raylit.cli.foreign import Parser
from raylit.cli.help import OF_SCRIPTS
from raylit.cli.optimizer import LRSchedulerType, LRSchedulerTypeTuple
from raylit.cli.source import ConfigSource, read_arguments
from raylit.core.datamodule import LightningDataModule
from raylit.core.module import LightningModule
from raylit.errors import ConfigError, did_you_mean, foreign_hint
from raylit.runtime.lazy import load_names
from raylit.trainer.trainer import Trainer

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

# Functions such as torch.relu do not say where they are to be imported from
register_unresolvable_import_paths(torch)
set_parsing_settings(config_read_mode_fsspec_enabled=True)  # --config s3://bucket/config.yaml

for package in (callbacks, loggers, profilers):
    load_names(package)  # a config may name their classes without the path

BASES = (Trainer, LightningModule, LightningDataModule, Callback)
SHORT_USAGE = 5  # lines
OF_CONFIG = re.compile(  # what jsonargparse says of a config, in a few lines or many
    r"Parser key \"|(?:is|are) required|does not accept (?:option|nested)|is not expected"
)
# Key in the config: class or bases of the classes, and where it is linked to
Registry = dict[str, tuple[type | tuple[type, ...], str]]
# flags of `raylit fit`, and what a script of LightningCLI has for them
OF_RAYLIT = {"--resume": "A script goes on from its last checkpoint with --ckpt_path last."}


class LightningArgumentParser(Parser):
    """Parser of config files, flags and environment variables, for LightningCLI.

    LightningCLI also passes it to its method `add_arguments_to_parser`.

    Args:
        args: as in jsonargparse's ArgumentParser (https://jsonargparse.readthedocs.io).
        description: what `--help` says first.
        env_prefix: how the names of environment variables begin.
        default_env: whether environment variables are read, such as PL_FIT__TRAINER__MAX_EPOCHS.
        kwargs: likewise, as in jsonargparse's ArgumentParser.

    Attributes:
        callback_keys: keys of the callbacks that were added with `add_lightning_class_args`.

    Example:
        >>> parser = LightningArgumentParser()
        >>> parser.add_lightning_class_args(EarlyStopping, "stopping")
        >>> parser.set_defaults({"stopping.monitor": "val_loss"})
        >>> parser.parse_args(["--stopping.patience=5"]).stopping.monitor
        'val_loss'
    """

    def __init__(
        self,
        *args: Any,
        description: str = "Lightning Trainer command line tool",
        env_prefix: str = "PL",
        default_env: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            *args, description=description, env_prefix=env_prefix, default_env=default_env, **kwargs
        )
        self.callback_keys: list[str] = []
        self._typed: list[str] = []
        self._classes: dict[str, type] = {}  # of each key for which the config need not name one
        self._optimizers: Registry = {}
        self._lr_schedulers: Registry = {}

    def parse_args(self, args: Iterable[str] | None = None, *rest: Any, **kwargs: Any) -> Any:
        """Read flags, and the config files among them."""
        self._typed = list(sys.argv[1:] if args is None else args)
        return super().parse_args(args, *rest, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End, or raise, with one sentence: the key, where it stands, the nearest right one."""
        parser = getattr(ex, "subcommand_parser", None) or self
        if found := re.match(r"unrecognized arguments: (--[\w.]+)", message):
            hint = OF_RAYLIT.get(found[1]) or did_you_mean(found[1], self._option_string_actions)
            message = "\n ".join(filter(None, [message, hint]))
        elif found := re.match(r"argument subcommand: invalid choice: '([^']*)'", message):
            commands = [*self._commands(), *OF_SCRIPTS]
            message = (
                f"there is no command {found[1]!r}.{did_you_mean(found[1], commands)} There are:"
                f" {', '.join(commands)}."
            )
        elif OF_CONFIG.search(message):
            message = parser._in_one_sentence(message, self._sources())
        super().error(message, ex)

    def _in_one_sentence(self, message: str, sources: list[ConfigSource]) -> str:
        keys = sorted({action.dest.partition(".")[0] for action in self._actions} - {"help"})
        inspector = Inspector("fit", keys, self._classes)
        return explain(sources, message, self.prog.split()[-1], inspector)

    def _commands(self) -> Sequence[str]:
        group = self._subcommands_action
        return [] if group is None else list(group.choices)

    def _sources(self) -> list[ConfigSource]:
        """Return the files and flags that were read, behind the subcommand if there is one."""
        commands = self._commands()
        typed = self._typed
        start = next((n + 1 for n, one in enumerate(typed) if one in commands), 0)
        try:
            return read_arguments(items.split(typed[start:])[0])
        except ConfigError:  # a flag without a value, or no flag, of which jsonargparse tells
            return []

    def print_usage(self, file: SupportsWrite[str] | None = None) -> None:
        """Print how it is called: in one line where all flags would hide the error below."""
        usage = self.format_usage()
        if file is sys.stderr and usage.count("\n") > SHORT_USAGE:
            usage = f"usage: {self.prog.replace(' [options]', '')} [-c CONFIG] [--KEY VALUE ...]\n"
        self._print_message(usage, file or sys.stdout)

    def add_lightning_class_args(
        self,
        lightning_class: Callable[..., object],
        nested_key: str,
        subclass_mode: bool = False,
        required: bool = True,
    ) -> list[str]:
        """Add the arguments of a Trainer, LightningModule, LightningDataModule or Callback.

        Args:
            lightning_class: the class, or a function that is annotated to return one.
            nested_key: key in the config below which they stand.
            subclass_mode: whether the config names the class, which may be any subclass.
            required: whether the config has to name one.

        Returns:
            The keys that were added.

        Raises:
            ConfigError: it is none of these.
        """
        cls: object = lightning_class
        if callable(cls) and not isinstance(cls, type):
            cls = class_from_function(cls)
        if not (isinstance(cls, type) and issubclass(cls, BASES)):
            raise ConfigError(
                f"add_lightning_class_args got {lightning_class!r}. Give a"
                f" {', a '.join(base.__name__ for base in BASES)}, or a function that is annotated"
                f" to return one.{foreign_hint(cls)}"
            )
        if issubclass(cls, Callback):
            self.callback_keys.append(nested_key)
        if subclass_mode:
            self.add_subclass_arguments(cls, nested_key, fail_untyped=False, required=required)
            return [nested_key]
        self._classes[nested_key] = cls
        # The CLI makes the Trainer, with callbacks of its own
        makes_it = not issubclass(cls, Trainer)
        keys = list(
            self.add_class_arguments(
                cls, nested_key, fail_untyped=False, instantiate=makes_it, sub_configs=True
            )
        )
        whole_numbers_first(self)
        return keys

    def add_optimizer_args(
        self,
        optimizer_class: type[Optimizer] | tuple[type[Optimizer], ...] = (Optimizer,),
        nested_key: str = "optimizer",
        link_to: str = "AUTOMATIC",
    ) -> None:
        """Add the arguments of an optimizer.

        Args:
            optimizer_class: the class; or a tuple, of whose subclasses the config names one.
            nested_key: key in the config below which they stand.
            link_to: key of the config to which they are handed; "AUTOMATIC" replaces the model's
                `configure_optimizers`.

        Raises:
            ConfigError: it is no optimizer.
        """
        self._add_made_later(optimizer_class, nested_key, {"params"}, (Optimizer,))
        self._optimizers[nested_key] = (optimizer_class, link_to)

    def add_lr_scheduler_args(
        self,
        lr_scheduler_class: LRSchedulerType | tuple[LRSchedulerType, ...] = LRSchedulerTypeTuple,
        nested_key: str = "lr_scheduler",
        link_to: str = "AUTOMATIC",
    ) -> None:
        """Add the arguments of a learning rate scheduler.

        Args:
            lr_scheduler_class: the class; or a tuple, of whose subclasses the config names one.
            nested_key: key in the config below which they stand.
            link_to: as in `add_optimizer_args`.

        Raises:
            ConfigError: it is no scheduler.
        """
        self._add_made_later(lr_scheduler_class, nested_key, {"optimizer"}, LRSchedulerTypeTuple)
        self._lr_schedulers[nested_key] = (lr_scheduler_class, link_to)

    def _add_made_later(
        self, cls: type | tuple[type, ...], key: str, skip: set[str], bases: tuple[type, ...]
    ) -> None:
        """Add arguments of a class that is not made with the config, but later.

        It is made once the argument in `skip` is there.
        """
        for one in cls if isinstance(cls, tuple) else (cls,):
            if not (isinstance(one, type) and issubclass(one, bases)):
                allowed = " or ".join(f"{base.__module__}.{base.__name__}" for base in bases)
                raise ConfigError(
                    f"{key}: {one!r} is no subclass of {allowed}. Give one, or a tuple of them."
                )
        if isinstance(cls, tuple):
            self.add_subclass_arguments(cls, key, instantiate=False, fail_untyped=False, skip=skip)
        else:
            self._classes[key] = cls
            self.add_class_arguments(
                cls, key, instantiate=False, fail_untyped=False, sub_configs=True, skip=skip
            )
