"""`raylit fit`, `validate`, `test`, `predict`, `explain`, `export` and `check`."""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Sequence

import torch

from raylit.callbacks import Callback
from raylit.checkpoint import find, folder, load
from raylit.cli import report
from raylit.cli.config import ARGUMENTS, Config, parse
from raylit.cli.record import KeepConfig
from raylit.core.hparams import stored_hparams
from raylit.core.module import LightningModule
from raylit.errors import CheckpointError, ConfigError, Terminated
from raylit.runtime.masked_config import mask_config
from raylit.runtime.messages import info
from raylit.runtime.secrets import without_secrets
from raylit.trainer.trainer import Trainer


def run(command: str, args: list[str], options: Namespace) -> None:
    """Run one of these commands.

    Args:
        command: which.
        args: the flags that are keys of the config, and --config.
        options: the other flags.

    Raises:
        ConfigError: something is wrong; nothing was started.
    """
    if getattr(options, "resume", False):
        if any(arg.partition("=")[0] == "--ckpt_path" for arg in args):
            raise ConfigError(
                "--resume goes on from the newest checkpoint, --ckpt_path from the one given. Give"
                " one of the two."
            )
        args = [*args, "--ckpt_path", "last"]
    output = getattr(options, "output", None)
    if output is not None:
        check_output(output)
    config = parse(command, args, needs_model=not options.print_config)
    if options.print_config:
        print(mask_config(config.text), end="")
        return
    config.seed()
    if command == "check":
        check(config)
        return
    keeper = KeepConfig("")
    trainer = make_trainer(config, [keeper])
    ckpt_path = find_checkpoint(
        command, trainer, config.values.ckpt_path, getattr(options, "resume", False)
    )
    if command != "fit" and ckpt_path is not None:
        take_arguments(config, ckpt_path)
    model, data = config.make_model_and_data()
    keeper.text = config.text
    report.begin(command, trainer, model, data, ckpt_path)
    more = {name: config.values[name] for name in ("weights_only", *ARGUMENTS[command])}
    started = time.time()
    try:
        result = getattr(trainer, command)(model, datamodule=data, ckpt_path=ckpt_path, **more)
    except (KeyboardInterrupt, Terminated):
        if command == "fit":
            say_how_to_go_on(trainer, started, args)
        raise
    if command == "fit":
        report.end_of_fit(result, trainer, time.time() - started, args)
    elif command == "predict":
        if output and result is not None:
            torch.save(result, output)
        report.end_of_predict(result, output)
    elif command == "explain":
        report.end_of_explain(result, output or "explanation")
    elif command in ("validate", "test") and not any(result):
        print(
            "Nothing was logged: call self.log in"
            f" {type(model).__name__}.{'validation' if command == 'validate' else 'test'}_step."
        )


def check_output(output: str) -> None:
    """Check that predictions can be written to a file, before hours go into them.

    Raises:
        ConfigError: they cannot.
    """
    folder_of = os.path.dirname(output) or "."
    if not output.strip() or "\0" in output:
        problem = "it is no name of a file. Give one: --output predictions.pt"
    elif os.path.isdir(output):
        problem = f"it is a folder. Give a file: --output {os.path.join(output, 'predictions.pt')}"
    elif not os.path.isdir(folder_of):
        problem = f"there is no folder {folder_of}. Make it, or give another file"
    elif os.path.exists(output) and not os.path.isfile(output):
        problem = "it is no file. Give one: --output predictions.pt"
    elif not os.access(output if os.path.exists(output) else folder_of, os.W_OK):
        problem = "no permission to write there. Give another file"
    else:
        return
    raise ConfigError(f"--output {output}: {problem}.")


def check(config: Config) -> None:
    """Check the model of a config.

    Raises:
        SystemExit: with code 1; there is a problem.
    """
    if config.values.ckpt_path is not None:
        info(
            f"ckpt_path: {config.values.ckpt_path} is left out: a check is of the model as it is"
            " before training."
        )
    trainer = make_trainer(config)
    model, data = config.make_model_and_data()
    report.begin("check", trainer, model, data, None)
    found = trainer.check(model, datamodule=data)
    if not found.ok:
        sys.exit(1)


def make_trainer(config: Config, more_callbacks: Sequence[Callback] = ()) -> Trainer:
    """Return the Trainer of a config.

    Raises:
        ConfigError: an argument is out of range.
    """
    arguments = config.make_trainer_arguments()
    callbacks = arguments["callbacks"]
    given = (
        list(callbacks)
        if isinstance(callbacks, (list, tuple))
        else [callbacks]
        if callbacks is not None
        else []
    )
    try:
        return Trainer(**{**arguments, "callbacks": [*given, *more_callbacks]})
    except ConfigError as error:
        name = re.match(
            r"\w+", str(error)
        )  # an argument that is out of range comes first in the text
        where = config.where("trainer", name[0]) if name else None
        if where is None:
            raise
        raise ConfigError(f"{where}: {error}") from error


def take_arguments(config: Config, ckpt_path: str) -> None:
    """Take the arguments of the model that a checkpoint was made with, so that its weights fit.

    Those that flags give stay.

    Raises:
        CheckpointError: the checkpoint is damaged, or names what it may not name.
    """
    checkpoint = load(ckpt_path, weights_only=config.values.weights_only)
    stored = stored_hparams(checkpoint, LightningModule.CHECKPOINT_HYPER_PARAMS_KEY)
    changed = [f"{name}={value!r}" for name, value in stored.items() if config.take(name, value)]
    if changed:
        info(f"Taken from the checkpoint rather than the config: {', '.join(changed)}")


def find_checkpoint(
    command: str, trainer: Trainer, ckpt_path: str | None, must_exist: bool
) -> str | None:
    """Return the file that `ckpt_path` means.

    Raises:
        ConfigError: there is none.
    """
    try:
        return find.resolve(
            ckpt_path,
            trainer.savers,
            trainer.storage_url or trainer.default_root_dir,
            "validate" if must_exist else command,
        )
    except CheckpointError as error:
        if must_exist:
            raise ConfigError(
                "--resume: there is nothing to go on from in"
                f" {report.shown(trainer.default_root_dir)}: no checkpoint was found. Leave out"
                " --resume."
            ) from error
        raise ConfigError(str(error)) from error


def say_how_to_go_on(trainer: Trainer, started: float, args: list[str]) -> None:
    """Say how to go on with a fit that was ended, if it left a checkpoint."""
    try:
        newest = find.resolve(
            "last", trainer.savers, trainer.storage_url or trainer.default_root_dir, "validate"
        )
    except CheckpointError:
        return
    if newest is not None and folder.modified(newest) >= started:
        again = without_secrets(shlex.join(report.without_ckpt_path(args)))
        print(
            f"Its newest checkpoint is {report.shown(newest)}. Go on with:\n  raylit fit {again}"
            " --resume",
            file=sys.stderr,
            flush=True,
        )
