"""LightningCLI: the command line of a user's own script, as in Lightning.

It reads from top to bottom in the order in which things happen.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_type_hints

import yaml
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    ArgumentParser,
    Namespace,
    class_from_function,
)
from torch.optim import Optimizer

from raylit.checkpoint import load
from raylit.cli import items
from raylit.cli.command import FAILED, INTERRUPTED, USAGE
from raylit.cli.config import (
    argument_names,
    as_list,
    flags_of_items,
    is_of,
    seed,
    take_from_environment,
)
from raylit.cli.construct import (
    as_hyperparameters,
    find_module_class,
    instantiate,
    reading_checkpoint,
    refuse_descriptions,
)
from raylit.cli.failure import show, show_config_error
from raylit.cli.help import OF_SCRIPTS
from raylit.cli.optimizer import (
    LRSchedulerTypeUnion,
    check_scheduler,
    configured,
    replace_configure_optimizers,
)
from raylit.cli.parser import LightningArgumentParser, Registry
from raylit.cli.record import SaveConfigCallback
from raylit.cli.script import command_of, program_of_script
from raylit.cli.script import run as run_command
from raylit.cli.source import read_arguments
from raylit.core.callback import Callback
from raylit.core.datamodule import LightningDataModule
from raylit.core.hooks import is_overridden
from raylit.core.hparams import CLASS_PATH, INSTANTIATOR, stored_hparams
from raylit.core.module import LightningModule
from raylit.errors import CheckpointError, ConfigError, MissingPackageError, NotSavedError
from raylit.runtime.aliases import Arguments, PlainData, PlainDict
from raylit.runtime.messages import warn
from raylit.trainer.trainer import Trainer
from raylit.version import __version__

ArgsType = list[str] | PlainDict | Namespace | None


class LightningCLI:
    """Makes model, data and Trainer from config files and flags, and runs the subcommand.

    The subcommand is fit, validate, test or predict.

    Args:
        model_class: the module's class, or a function annotated to return one; None: the config
            names it.
        datamodule_class: likewise for the data.
        save_config_callback: class of the callback that keeps the config with the run; None: none
            does.
        save_config_kwargs: its arguments, such as `{"overwrite": True}`.
        trainer_class: a Trainer's class, or a function annotated to return one.
        trainer_defaults: defaults of the Trainer's arguments. `callbacks` are there whatever the
            config says.
        seed_everything_default: a seed; True for the default one, False for none.
        parser_kwargs: arguments of the parser, such as `{"default_env": True}`; those of one
            subcommand below its name.
        parser_class: class of the parsers.
        subclass_mode_model: whether the config may name a subclass of `model_class`.
        subclass_mode_data: likewise for `datamodule_class`.
        args: flags as a list, or a config as a dict; None takes them from the process.
        run: False makes the objects and runs nothing; there are no subcommands then.
        auto_configure_optimizers: whether the config may have an `optimizer` and an `lr_scheduler`.
        load_from_checkpoint_support: whether `save_hyperparameters` keeps what the config says, of
            which `load_from_checkpoint` can make objects that were arguments.

    Attributes:
        parser: reads files, flags and environment.
        config: all that was read, complete.
        config_init: the same with objects in place of what describes them.
        subcommand: `fit`, `validate`, `test` or `predict`; None if `run` is False.
        model: the module.
        datamodule: the datamodule, or None.
        trainer: the Trainer.

    Raises:
        SystemExit: with code 2, after a text on stderr: a flag or a config is wrong.
        ConfigError: what `add_arguments_to_parser` added does not fit together.

    Example:
        >>> class MyCLI(LightningCLI):
        ...     def add_arguments_to_parser(self, parser):
        ...         parser.link_arguments("data.batch_size", "model.batch_size")
        >>> if (
        ...     __name__ == "__main__"
        ... ):  # python main.py fit --config config.yaml --trainer.num_workers 2
        ...     MyCLI(LitModel, MyData)
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: (
            type[LightningDataModule] | Callable[..., LightningDataModule] | None
        ) = None,
        save_config_callback: type[SaveConfigCallback] | None = SaveConfigCallback,
        save_config_kwargs: Arguments | None = None,
        trainer_class: type[Trainer] | Callable[..., Trainer] = Trainer,
        trainer_defaults: Arguments | None = None,
        seed_everything_default: bool | int = True,
        parser_kwargs: Arguments | None = None,
        parser_class: type[LightningArgumentParser] = LightningArgumentParser,
        subclass_mode_model: bool = False,
        subclass_mode_data: bool = False,
        args: ArgsType = None,
        run: bool = True,
        auto_configure_optimizers: bool = True,
        load_from_checkpoint_support: bool = True,
    ) -> None:
        self.model_class = model_class
        self.datamodule_class = datamodule_class
        self.save_config_callback = save_config_callback
        self.save_config_kwargs = save_config_kwargs or {}
        self.trainer_class = trainer_class
        self.trainer_defaults = trainer_defaults or {}
        self.seed_everything_default = seed_everything_default
        self.parser_kwargs = parser_kwargs or {}
        self.parser_class = parser_class
        self.subclass_mode_model = subclass_mode_model or model_class is None
        self.subclass_mode_data = subclass_mode_data or datamodule_class is None
        self.auto_configure_optimizers = auto_configure_optimizers
        self.load_from_checkpoint_support = load_from_checkpoint_support

        with _as_command(args is None):
            self._begin(run, args)

    def _begin(self, run: bool, args: ArgsType) -> None:
        """Read the arguments, make the objects, and run the subcommand."""
        typed = sys.argv[1:] if args is None else []
        if isinstance(args, list):
            typed = args
        command = command_of(typed, self.subcommands()) if run else None
        if command is not None:
            run_command(self, command, typed[1:])
        for_subcommands = {
            name: kwargs
            for name, kwargs in self.parser_kwargs.items()
            if name in self.subcommands()
        }
        for_all = {
            name: value for name, value in self.parser_kwargs.items() if name not in for_subcommands
        }
        self.setup_parser(run, for_all, for_subcommands)
        self.parse_arguments(self.parser, args)
        self.subcommand: str | None = self.config["subcommand"] if run else None
        take_from_environment(self.config, [], below=self.subcommand)
        if self.subcommand is not None:
            self.take_hyperparameters()
        self._set_seed()
        self.before_instantiate_classes()
        self.instantiate_classes()
        self.after_instantiate_classes()
        if self.subcommand is not None:
            self._run_subcommand(self.subcommand)

    # ---- the parser ----

    def setup_parser(
        self,
        add_subcommands: bool,
        main_kwargs: dict[str, object],
        subparser_kwargs: dict[str, Arguments],
    ) -> None:
        """Make the parser, with a parser for each subcommand if there are any."""
        self.parser = self.init_parser(**main_kwargs)
        self._subcommand_parsers: dict[str, LightningArgumentParser] = {}
        self._subcommand_method_arguments: dict[str, list[str]] = {}
        if not add_subcommands:
            self.add_all_arguments(self.parser)
            self._accept_config_of_subcommands()
            return
        cls: object = (
            self.trainer_class
            if isinstance(self.trainer_class, type)
            else class_from_function(self.trainer_class)
        )
        self.parser.epilog = (
            f"Also: {', '.join(OF_SCRIPTS)}, as of the command raylit; their -h says more."
        )
        added = self.parser.add_subcommands()
        for name, skip in self.subcommands().items():
            does = (inspect.getdoc(getattr(cls, name)) or "").partition("\n")[0] or None
            parser = self.init_parser(**{"description": does, **subparser_kwargs.get(name, {})})
            self.add_all_arguments(parser)
            self._subcommand_method_arguments[name] = parser.add_method_arguments(
                cls, name, skip=set(skip)
            )
            self._subcommand_parsers[name] = parser
            added.add_subcommand(name, parser, help=does)

    def _accept_config_of_subcommands(self) -> None:
        """Let a CLI that runs nothing read the config that a fit has stored, with its ckpt_path.

        https://github.com/Lightning-AI/pytorch-lightning/issues/17447
        """
        cls: object = self.trainer_class if isinstance(self.trainer_class, type) else Trainer
        taken = {action.dest for action in self.parser._actions}
        for method, skip in self.subcommands().items():
            names = set(inspect.signature(getattr(cls, method)).parameters) - {*skip, "self"}
            for name in sorted(names - taken):
                taken.add(name)
                self.parser.add_argument(
                    f"--{name}", type=Any, default=argparse.SUPPRESS, help=argparse.SUPPRESS
                )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Return a parser that has nothing but `--config`."""
        parser = self.parser_class(**{"dump_header": [f"raylit=={__version__}"], **kwargs})
        parser.add_argument(
            "-c",
            "--config",
            action=ActionConfigFile,
            help="Path to a configuration file in json or yaml format.",
        )
        return parser

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the names of the Trainer's methods that are subcommands.

        Each comes with those of its arguments that a config cannot give.
        """
        evaluation = {"model", "dataloaders", "datamodule"}
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": evaluation,
            "test": evaluation,
            "predict": evaluation,
        }

    def add_all_arguments(self, parser: LightningArgumentParser) -> None:
        """Add to a parser all that the config of a subcommand has: those below, in this order."""
        self.add_default_arguments_to_parser(parser)
        self.add_core_arguments_to_parser(parser)
        self.add_arguments_to_parser(parser)
        if self.auto_configure_optimizers:
            if not parser._optimizers:
                parser.add_optimizer_args()
            if not parser._lr_schedulers:
                parser.add_lr_scheduler_args()
        self.link_optimizers_and_lr_schedulers(parser)

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `seed_everything`."""
        parser.add_argument(
            "--seed_everything",
            type=bool | int,
            default=self.seed_everything_default,
            help=(
                "Seed of all random numbers, set before anything is made; true takes PL_GLOBAL_SEED"
                " or 0, false sets none."
            ),
        )

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `trainer`, `model` and `data`."""
        parser.add_lightning_class_args(self.trainer_class, "trainer")
        parser.set_defaults(
            {
                f"trainer.{name}": value
                for name, value in self.trainer_defaults.items()
                if name != "callbacks"
            }
        )
        parser.add_lightning_class_args(
            self.model_class or LightningModule, "model", subclass_mode=self.subclass_mode_model
        )
        parser.add_lightning_class_args(
            self.datamodule_class or LightningDataModule,
            "data",
            subclass_mode=self.subclass_mode_data,
            required=self.datamodule_class is not None,  # the module itself may have the loaders
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Override to add arguments, to link some to others, or to set defaults."""

    @staticmethod
    def link_optimizers_and_lr_schedulers(parser: LightningArgumentParser) -> None:
        """Hand optimizers and schedulers added with `link_to` to the arguments it names."""
        for key, (cls, link_to) in {**parser._optimizers, **parser._lr_schedulers}.items():
            if link_to == "AUTOMATIC":
                continue
            if isinstance(cls, tuple):
                parser.link_arguments(key, link_to)
            else:
                parser.link_arguments(key, link_to, compute_fn=_WithClassPath(cls))

    # ---- the config ----

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Read the arguments into `self.config`."""
        if args is not None and len(sys.argv) > 1:
            warn(
                f"LightningCLI was given args={args!r}, so the arguments of the process are not"
                f" read: {sys.argv[1:]}. Give one of the two."
            )
        self.config: Namespace
        self._args: list[str] = []
        if isinstance(args, (dict, Namespace)):
            self.config = parser.parse_object(args)
            return
        self._args, named = items.split(sys.argv[1:] if args is None else args)
        self.config = parser.parse_args(self._args)
        if named:
            flags = flags_of_items(self._plain(self.config).get("trainer") or {}, named)
            self._args += flags
            self.config = parser.parse_args(self._args)

    def take_hyperparameters(self) -> None:
        """Let the model have the arguments that the checkpoint at `ckpt_path` was made with.

        So the weights of the checkpoint fit the model.
        """
        path = self._get(self.config, "ckpt_path")
        if not path or not os.path.isfile(path):
            return
        checkpoint = load(path, weights_only=self._get(self.config, "weights_only"))
        stored = stored_hparams(checkpoint, LightningModule.CHECKPOINT_HYPER_PARAMS_KEY)
        named = stored.pop(CLASS_PATH, None)
        hparams = {
            name: value
            for name, value in stored.items()
            if name != INSTANTIATOR and name not in self._flags_of_model()
        }
        if not hparams and named is None:
            return
        cls = self._class_of_model()
        if named is not None:
            cls = find_module_class(named, cls)
        spec = hparams if named is None else {"class_path": named, "dict_kwargs": hparams}
        refuse_descriptions(hparams, cls)
        trusted = [named, self.config]
        try:
            with reading_checkpoint(hparams, cls, trusted):
                taken: PlainDict = {"model": spec}
                if self.subcommand is not None:
                    taken = {self.subcommand: taken}
                self.config = self.parser.parse_object(taken, self.config)
        except SystemExit:
            sys.stderr.write(
                f"Parsing of ckpt_path hyperparameters failed! They are those in {path}.\n"
            )
            raise

    def _class_of_model(self) -> type:
        """Return the class of the model, as far as it is known before it is made."""
        found: Any = self.model_class or LightningModule
        if not isinstance(found, type):
            found = get_type_hints(found)["return"]
        named = self._get(self.config, "model", {}).get("class_path")
        if self.subclass_mode_model and named:
            found = find_module_class(named, found)
        cls: type = found
        return cls

    def _flags_of_model(self) -> set[str]:
        """Return the names of the model's arguments that flags of the command line give.

        These win over the values in a checkpoint.
        """
        names: set[str] = set()
        rest = iter(self._args)
        for arg in rest:
            flag, equals, value = arg.partition("=")
            if flag.partition(".")[0] == "--model":
                (source,) = read_arguments([f"{flag}={value if equals else next(rest)}"])
                names |= argument_names(source)
        return names

    def _set_seed(self) -> None:
        own = self.config[self.subcommand] if self.subcommand else self.config
        own["seed_everything"] = seed(own.get("seed_everything", True))

    # ---- the objects ----

    def before_instantiate_classes(self) -> None:
        """Override to do something when `self.config` is complete."""

    def instantiate_classes(self) -> None:
        """Make the datamodule, the model and the Trainer."""
        self.config_init = instantiate(self.parser, self.config, self._hyperparameters)
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._get(self.config_init, "model")
        self._add_configure_optimizers_method_to_model(self.subcommand)
        self.trainer = self.instantiate_trainer()

    def after_instantiate_classes(self) -> None:
        """Override to do something with the objects before the subcommand runs."""

    def instantiate_trainer(self, **kwargs: object) -> Trainer:
        """Make the Trainer.

        Args:
            kwargs: arguments that win over the config's.
        """
        given = {**self._get(self.config_init, "trainer", {}), **kwargs}
        added = [
            self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys
        ]
        if "callbacks" not in given:
            warn(f"{self.trainer_class.__qualname__} has no argument `callbacks`, so it gets none.")
            return self.trainer_class(**given)
        callbacks = [
            *as_list(given["callbacks"]),
            *added,
            *map(_as_callback, as_list(self.trainer_defaults.get("callbacks"))),
        ]
        if self.save_config_callback and not given.get("fast_dev_run"):
            config = self.config[self.subcommand] if self.subcommand else self.config
            callbacks.append(
                self.save_config_callback(
                    self._parser(self.subcommand), config, **self.save_config_kwargs
                )
            )
        return self.trainer_class(**{**given, "callbacks": callbacks})

    def _hyperparameters(
        self, cls: type, arguments: dict[str, object], links: dict[str, object]
    ) -> Arguments | None:
        """Return the hyperparameters that an object of `cls` is to keep.

        They are its part of the config, if it is the model or the datamodule; None otherwise.
        """
        if not self.load_from_checkpoint_support:
            return None
        for key, base, subclass_mode in (
            ("model", self.model_class, self.subclass_mode_model),
            ("data", self.datamodule_class, self.subclass_mode_data),
        ):
            if is_of(self._get(self.config, key), cls) if subclass_mode else cls is base:
                own = {
                    name[len(key) + 1 :]: value
                    for name, value in links.items()
                    if name.startswith(f"{key}.")
                }
                return as_hyperparameters(self._dumped_config().get(key) or {}, own)
        return None

    def _dumped_config(self) -> PlainDict:
        """Return the config as plain data."""
        if not hasattr(self, "config_dump"):
            self.config_dump: dict[str, object] = self._plain(self.config)
        return self.config_dump

    def _plain(self, config: Namespace) -> PlainDict:
        """Return a config, that of its subcommand if it has one, as plain data."""
        text = self.parser.dump(config, skip_link_targets=False, skip_unset=False, format="yaml")
        whole = yaml.safe_load(text)
        plain: PlainDict = whole[config["subcommand"]] if "subcommand" in config else whole
        return plain

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule,
        optimizer: Optimizer,
        lr_scheduler: LRSchedulerTypeUnion | None = None,
    ) -> Any:
        """Return the value for the model's `configure_optimizers` to return.

        Override it to return something else.

        Args:
            lightning_module: the model.
            optimizer: the optimizer that the config describes.
            lr_scheduler: likewise the scheduler, or None.
        """
        return configured(lightning_module, optimizer, lr_scheduler)

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Have the model use the config's optimizer and scheduler.

        Of each there may be one that is not linked to an argument.
        """
        if not self.auto_configure_optimizers:
            return
        parser = self._parser(subcommand)
        optimizers = _automatic(parser._optimizers)
        schedulers = _automatic(parser._lr_schedulers)
        if not optimizers:
            return
        if len(optimizers) > 1 or len(schedulers) > 1:
            raise ConfigError(
                f"There are several of the AUTOMATIC keys {', '.join([*optimizers, *schedulers])},"
                f" but {type(self).__name__}.configure_optimizers takes one optimizer and one"
                " lr_scheduler. Give `link_to` to add_optimizer_args and add_lr_scheduler_args,"
                " and make them in the model."
            )
        optimizer = self._description(parser._optimizers, optimizers[0])
        scheduler = self._description(parser._lr_schedulers, schedulers[0]) if schedulers else None
        if not optimizer:
            if scheduler:
                warn(
                    f"lr_scheduler: {scheduler['class_path']} is not used, since the config has no"
                    " optimizer for it."
                )
            return
        check_scheduler(scheduler)
        if is_overridden("configure_optimizers", self.model, LightningModule):
            warn(
                f"`{type(self.model).__name__}.configure_optimizers` will be overridden by"
                f" `{type(self).__name__}.configure_optimizers`."
            )
        replace_configure_optimizers(self.model, optimizer, scheduler, self.configure_optimizers)

    def _description(self, registry: Registry, key: str) -> Mapping[str, PlainData] | None:
        """Return class_path and init_args of the object at a key; None if there is none."""
        cls = registry[key][0]
        given = self._get(self.config_init, key)
        found: Mapping[str, object] = (
            given if isinstance(cls, tuple) else _WithClassPath(cls)(given)
        )
        return found or None

    # ---- running ----

    def _run_subcommand(self, subcommand: str) -> None:
        """Call `before_<subcommand>`, the subcommand and `after_<subcommand>`.

        The CLI may bring a method of each name.
        """
        getattr(self, f"before_{subcommand}", _nothing)()
        function = getattr(self, subcommand, None) or getattr(self.trainer, subcommand)
        function(**self._prepare_subcommand_kwargs(subcommand))
        getattr(self, f"after_{subcommand}", _nothing)()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, object]:
        """Return the arguments of the Trainer's method."""
        names = self._subcommand_method_arguments[subcommand]
        given = {
            name: value for name, value in self.config_init[subcommand].items() if name in names
        }
        data = {} if self.datamodule is None else {"datamodule": self.datamodule}
        return {**given, "model": self.model, **data}

    def _parser(self, subcommand: str | None) -> LightningArgumentParser:
        return self.parser if subcommand is None else self._subcommand_parsers[subcommand]

    def _get(self, config: Namespace, key: str, default: object = None) -> Any:
        """Return the value at a key of the config of the subcommand that runs."""
        return (config[self.subcommand] if self.subcommand else config).get(key, default)


@contextmanager
def _as_command(is_command: bool) -> Iterator[None]:
    """End the process with a message, not a traceback, when the user's input is wrong.

    Ctrl-C, which is no fault either, ends it in the same way. This is only for the arguments of the
    process: a script that hands over its own gets the exception.
    """
    try:
        yield
    except NotSavedError:  # which came of the run
        raise
    except (ConfigError, CheckpointError) as error:
        if not is_command:
            raise
        show_config_error(error, program_of_script(), "--verbose" in sys.argv)
        sys.exit(USAGE)
    except MissingPackageError as error:
        if not is_command:
            raise
        show(error, "--verbose" in sys.argv)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        if not is_command:
            raise
        print("Interrupted.", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)


class _WithClassPath:
    """Adds its class_path to the arguments of a class.

    An object rather than a function so that parsers can be sent to workers.
    """

    def __init__(self, cls: type) -> None:
        self.class_path = f"{cls.__module__}.{cls.__name__}"

    def __call__(self, init_args: object) -> dict[str, object]:
        given = init_args.as_dict() if isinstance(init_args, Namespace) else init_args
        return {"class_path": self.class_path, "init_args": given or {}}


def _automatic(registry: Registry) -> list[str]:
    """Return the keys that are linked to no argument."""
    return [key for key, (_, link_to) in registry.items() if link_to == "AUTOMATIC"]


def _nothing() -> None:
    """The hook around a subcommand for which the CLI has none: it does nothing."""


def _as_callback(given: object) -> object:
    """Make a callback of a mapping with class_path and init_args; return others as they are."""
    if not isinstance(given, Mapping):
        return given
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    return parser.instantiate(parser.parse_object({"callback": dict(given)})).callback
