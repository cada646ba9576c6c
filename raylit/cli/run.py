"""`raylit fit`, `validate`, `test`, `predict`, `explain`, `export` and `check`."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from argparse import Namespace

import torch

from raylit.checkpoint import find, folder, load
from raylit.cli import report
from raylit.cli.config import ARGUMENTS, Config, ConfigReader
from raylit.cli.record import KeepConfig
from raylit.core.callback import checkpoint_roots
from raylit.core.hparams import stored_hparams
from raylit.core.module import LightningModule
from raylit.errors import CheckpointError, ConfigError, Terminated
from raylit.runtime.masked_config import mask_config
from raylit.runtime.messages import info
from raylit.runtime.secrets import without_secrets
from raylit.trainer.trainer import Trainer


def run(command: str, args: list[str], options: Namespace, reader: ConfigReader) -> None:
    """Run one of these commands.

    Args:
        command: which.
        args: the flags that are keys of the config, and --config.
        options: the other flags.
        reader: reads the config.

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
    config = reader.read(command, args, needs_model=not options.print_config)
    if options.print_config:
        print(mask_config(config.text), end="")
        return
    config.seed()
    if command == "check":
        check(config)
        return
    keeper = KeepConfig("")
    trainer = config.make_trainer([keeper])
    opened = trainer.opened_for(config.values.weights_only)
    ckpt_path = find_checkpoint(
        command,
        trainer,
        config.values.ckpt_path,
        getattr(options, "resume", False),
        config.origin(),
        opened,
    )
    if ckpt_path is not None and command != "fit":
        take_arguments(config, ckpt_path, opened)
    elif ckpt_path is not None and config.values.weights_only is not False:
        find.look_into(ckpt_path, opened)
    model, data = config.make_model_and_data()
    keeper.text = config.text
    report.begin(command, trainer, model, data, ckpt_path)
    more = {name: config.values[name] for name in ("weights_only", *ARGUMENTS[command])}
    started = time.time()
    try:
        result = getattr(trainer, command)(model, datamodule=data, ckpt_path=ckpt_path, **more)
    except (KeyboardInterrupt, Terminated):
        if command == "fit":
            say_how_to_go_on(trainer, started, report.again(args, options), config.program)
        raise
    if command == "fit":
        again = report.again(args, options)
        report.end_of_fit(result, trainer, time.time() - started, again, config.program)
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
    elif not os.path.exists(output) and (reason := _takes_no_files(folder_of)) is not None:
        problem = f"nothing can be written there ({reason}). Give another file"
    else:
        return
    raise ConfigError(f"--output {output}: {problem}.")


def _takes_no_files(folder_of: str) -> str | None:
    """Return why a folder takes no files, whatever its mode says.

    Root may write anywhere but in /proc.
    """
    try:
        with tempfile.TemporaryFile(dir=folder_of):
            return None
    except OSError as error:
        return error.strerror or str(error)


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
    trainer = config.make_trainer()
    model, data = config.make_model_and_data()
    report.begin("check", trainer, model, data, None)
    found = trainer.check(model, datamodule=data)
    if not found.ok:
        sys.exit(1)


def take_arguments(config: Config, ckpt_path: str, opened: find.Opened | None = None) -> None:
    """Take the arguments of the model that a checkpoint was made with, so that its weights fit.

    Those that flags give stay. The checkpoint is put into `opened`, or taken from there.

    Raises:
        CheckpointError: the checkpoint is damaged, or names what it may not name.
    """
    checkpoint = None if opened is None else opened.get(ckpt_path)
    if checkpoint is None:
        checkpoint = load(ckpt_path, weights_only=config.values.weights_only)
    if opened is not None:
        opened[ckpt_path] = checkpoint
    stored = stored_hparams(checkpoint, LightningModule.CHECKPOINT_HYPER_PARAMS_KEY)
    changed = [f"{name}={value!r}" for name, value in stored.items() if config.take(name, value)]
    if changed:
        info(f"Taken from the checkpoint rather than the config: {', '.join(changed)}")


def find_checkpoint(
    command: str,
    trainer: Trainer,
    ckpt_path: str | None,
    must_exist: bool,
    origin: find.Origin,
    opened: find.Opened | None = None,
) -> str | None:
    """Return the file that `ckpt_path` means.

    Its contents are put into `opened`, if it had to be read to tell that it is whole.

    Raises:
        ConfigError: there is none.
    """
    roots = checkpoint_roots(trainer, command)
    try:
        return find.resolve(
            ckpt_path,
            trainer.savers,
            roots,
            "validate" if must_exist else command,
            opened,
            origin=origin,
        )
    except CheckpointError as error:
        if must_exist:
            raise ConfigError(
                "--resume: there is nothing to go on from in"
                f" {', '.join(map(report.shown, roots))}: no checkpoint was found. Leave out"
                " --resume."
            ) from error
        raise ConfigError(str(error)) from error


def say_how_to_go_on(trainer: Trainer, started: float, args: list[str], program: str) -> None:
    """Say how to go on with a fit that was ended, if it left a checkpoint."""
    try:
        roots = checkpoint_roots(trainer, "fit")
        newest = find.resolve("last", trainer.savers, roots, "validate")
    except CheckpointError:
        return
    if newest is not None and folder.modified(newest) >= started:
        again = without_secrets(shlex.join(report.without_ckpt_path(args)))
        print(
            f"Its newest checkpoint is {report.shown(newest)}. Go on with:\n  {program} fit {again}"
            f" {'--resume' if program == 'raylit' else '--ckpt_path last'}",
            file=sys.stderr,
            flush=True,
        )
