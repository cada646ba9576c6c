"""From the arguments of `raylit` to its exit code."""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from raylit.cli import failure
from raylit.cli.help import COMMANDS, GENERAL, HELP
from raylit.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NotSavedError,
    UnsavableError,
    did_you_mean,
)
from raylit.runtime.secrets import without_secrets
from raylit.version import __version__

if TYPE_CHECKING:
    from raylit.cli.config import ConfigReader

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143

REMOTE = ("fit", "validate", "test", "tune")  # those that --on runs elsewhere


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: what stands behind `raylit`; None takes it from the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage or config, 130 interrupted, 143 terminated.
    """
    args = sys.argv[1:] if args is None else list(args)
    command = args[0] if args and args[0] in COMMANDS else ""
    return exit_code(lambda: _run(args), f"raylit {command}".rstrip(), "--verbose" in args)


def exit_code(run: Callable[[], object], program: str, is_verbose: bool) -> int:
    """Run a command, show its errors in the form that users want, and return the exit code.

    Args:
        run: the command.
        program: its name, for messages.
        is_verbose: whether whole tracebacks are shown.
    """
    with _short_warnings(is_verbose):
        try:
            run()
            sys.stdout.flush()
        except (NotSavedError, UnsavableError) as error:  # which came of the run
            failure.show(error, is_verbose)
            return FAILED
        except CheckpointError as error:  # the one that was asked for is not to be used
            failure.show_config_error(error, program, is_verbose)
            return USAGE
        except DataError as error:  # what was typed is right; the data is not there, or not whole
            failure.show(error, is_verbose)
            return FAILED
        except ConfigError as error:
            failure.show_config_error(error, program, is_verbose)
            return USAGE
        except KeyboardInterrupt:
            _say("Interrupted.")
            return INTERRUPTED
        except SystemExit as end:
            return _code_of(end)
        except Exception as error:
            if isinstance(error, BrokenPipeError) and _is_unread():
                return FAILED
            failure.show(error, is_verbose)
            return FAILED
    return DONE


def _is_unread() -> bool:
    """Tell whether nobody reads the output any more, as behind `| head`.

    Further output goes nowhere then.
    """
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # it is none of the process's own
        return False
    asked = select.poll()
    asked.register(output, 0)
    is_unread = any(event & select.POLLERR for _, event in asked.poll(0))
    if is_unread:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output)  # else Python complains when it ends
        os.close(nowhere)
    return is_unread


def _code_of(end: SystemExit) -> int:
    """Return the exit code that the end of the process means, as Python does.

    A text is shown, and the code is that of a failure.
    """
    if end.code in (TERMINATED, signal.SIGTERM):  # Ray's own handler ends with the signal's number
        _say("Terminated.")
        return TERMINATED
    if end.code is None:
        return DONE
    if isinstance(end.code, int):
        return end.code
    _say(without_secrets(str(end.code)))
    return FAILED


def _run(args: list[str]) -> None:
    """Find out which command is meant and run it."""
    if not args or args[0] in ("-h", "--help"):
        print(GENERAL)
        return
    if args[0] == "--version":
        print(f"raylit {__version__}")
        return
    if args[0].partition("=")[0] == "--print_completion":
        from raylit.cli.completion import completion

        print(completion((args[0].partition("=")[2] or " ".join(args[1:2])).strip()))
        return
    command = args[0]
    rest = args[1:]
    if command not in COMMANDS:
        hint = (
            " The command comes first: raylit fit --config ..."
            if command.startswith("-")
            else did_you_mean(command, COMMANDS)
        )
        raise ConfigError(
            f"There is no command {command!r}.{hint} There are: {', '.join(COMMANDS)}."
        )
    if "-h" in rest or "--help" in rest:
        print(HELP[command])
        return
    if command == "init":
        from raylit.cli.init import run as run_init

        run_init(rest)
        return
    if command == "data":
        from raylit.cli.data import run as run_data

        run_data(rest)
        return
    if command in ("runs", "sync", "register"):
        from raylit.cli import runs

        actions = {"runs": runs.run, "sync": runs.sync, "register": runs.register}
        actions[command](rest)
        return
    _import_from_here()
    if command == "rerun":
        from raylit.cli.rerun import rerun

        rerun(rest)
        return
    if command != "ui" and any(arg.partition("=")[0].endswith(".help") for arg in rest):
        from raylit.cli.config import describe

        describe(rest)
        return
    options, rest = take_options(command, rest)
    if options.verbose:
        os.environ["RAYLIT_VERBOSE"] = "1"
    else:
        # The tables it creates in a new database
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if command == "ui":
        from raylit.cli.ui import serve

        serve(options.backend_store_uri, options.host, options.port, options.auth)
        return
    if options.ray_address:
        os.environ["RAY_ADDRESS"] = options.ray_address
    run_with(command, rest, options)


def run_with(
    command: str, args: list[str], options: argparse.Namespace, reader: ConfigReader | None = None
) -> None:
    """Run a command that has a config.

    Args:
        command: which.
        args: the flags that are keys of the config, and --config.
        options: the other flags, from `take_options`.
        reader: reads the config; None: as `raylit` does.
    """
    from raylit.cli.config import CommandReader

    reader = reader or CommandReader()
    if getattr(options, "on", None) and not options.print_config:
        from raylit.cli.remote import run as run_elsewhere

        run_elsewhere(command, args, options, reader)
    elif command == "tune":
        from raylit.cli.sweep import tune

        tune(args, options, reader)
    else:
        from raylit.cli.run import run

        run(command, args, options, reader)


def take_options(command: str, args: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Take out of `args` the flags that are no keys of a config; return them and the rest."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--verbose", action="store_true")
    if command == "ui":
        parser.add_argument("--backend-store-uri", "--backend_store_uri")
        parser.add_argument("--host", default="127.0.0.1")
        parser.add_argument("--port", type=int, default=5000)
        parser.add_argument("--auth", action="store_true")
    else:
        parser.add_argument("--ray.address", dest="ray_address")
        parser.add_argument("--print_config", action="store_true")
        if command == "tune":
            parser.add_argument("--sweep")
            parser.add_argument("--resume", nargs="?", const=True)
            parser.add_argument("--retrain", nargs="?", const="all")
            parser.add_argument("--auto", action="store_true")
            parser.add_argument("--budget")
            parser.add_argument("--average", type=int)
        elif command == "fit":
            parser.add_argument("--resume", action="store_true")
        elif command in ("predict", "explain"):
            parser.add_argument("--output")
    if command in REMOTE:
        on, args = _split_on(args)
        parser.set_defaults(on=on, typed=args)
    elif any(arg.partition("=")[0] == "--on" for arg in args):
        raise ConfigError(
            f"--on: raylit {command} runs here, where its files are wanted. On a cluster run"
            f" {', '.join(REMOTE)}."
        )
    if command == "tune":
        args, behind = _split_at_retrain(args)
        args, of_sweep = _split_of_sweep(args)
        parser.set_defaults(behind_retrain=behind, of_sweep=of_sweep)
    options, rest = parser.parse_known_args(args)
    if command == "ui" and rest:
        flags = ("--auth", "--backend-store-uri", "--host", "--port", "--verbose")
        raise ConfigError(f"{rest[0]}: raylit ui has no such flag.{did_you_mean(rest[0], flags)}")
    return options, rest


def _split_on(args: list[str]) -> tuple[str | None, list[str]]:
    """Return the value of --on, wherever it stands, and the other flags, which go with the job."""
    on: str | None = None
    others: list[str] = []
    rest = iter(args)
    for arg in rest:
        flag, equals, value = arg.partition("=")
        if flag != "--on":
            others.append(arg)
            continue
        on = value if equals else next(rest, "")
        if not on or on.startswith("-"):
            raise ConfigError("--on wants to know where: --on http://head:8265.")
    return on, others


def _split_at_retrain(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the flags up to --retrain, and those behind it, which are those of its fit alone."""
    for index, arg in enumerate(args):
        if arg.partition("=")[0] == "--retrain":
            end = index + 1
            if arg == "--retrain" and args[end : end + 1] and not args[end].startswith("-"):
                end += 1
            return args[:end], args[end:]
    return args, []


def _split_of_sweep(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the flags but for those such as `--sweep.trials 2`, and those."""
    others: list[str] = []
    of_sweep: list[str] = []
    rest = iter(args)
    for arg in rest:
        if not arg.startswith("--sweep."):
            others.append(arg)
            continue
        of_sweep.append(arg)
        if "=" not in arg:
            of_sweep.extend([value for value in [next(rest, None)] if value is not None])
    return others, of_sweep


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of printing its usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument ") + ".")


def _import_from_here() -> None:
    """Let class_path find modules and packages of the current folder, as `python -m` would."""
    here = os.getcwd()
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)


@contextmanager
def _short_warnings(is_verbose: bool) -> Iterator[None]:
    """Show warnings as one line, without the place in the code that gave them, in a block."""
    before = warnings.formatwarning
    if not is_verbose:
        warnings.formatwarning = lambda message, category, *place, **line: (
            f"{category.__name__}: {message}\n"
        )
    try:
        yield
    finally:
        warnings.formatwarning = before


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
