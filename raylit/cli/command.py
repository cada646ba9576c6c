"""From the arguments of `raylit` to its exit code."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from raylit.cli import failure
from raylit.cli.help import COMMANDS, GENERAL, HELP
from raylit.errors import ConfigError, did_you_mean
from raylit.version import __version__

DONE = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
TERMINATED = 143


def main(args: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: what stands behind `raylit`; None takes it from the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage or config, 130 interrupted, 143 terminated.
    """
    args = sys.argv[1:] if args is None else list(args)
    is_verbose = "--verbose" in args
    with _short_warnings(is_verbose):
        try:
            _run(args)
        except ConfigError as error:
            failure.show_config_error(
                error, args[0] if args and args[0] in COMMANDS else "", is_verbose
            )
            return USAGE
        except KeyboardInterrupt:
            _say("Interrupted.")
            return INTERRUPTED
        except SystemExit as end:
            code = (
                TERMINATED if end.code == signal.SIGTERM else end.code
            )  # Ray's own handler ends with the signal's number
            if code == TERMINATED:
                _say("Terminated.")
            return code if isinstance(code, int) else DONE if code is None else FAILED
        except Exception as error:
            failure.show(error, is_verbose)
            return FAILED
    return DONE


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
    if command in ("runs", "sync"):
        from raylit.cli import runs

        (runs.run if command == "runs" else runs.sync)(rest)
        return
    _import_from_here()
    if command != "ui" and any(arg.partition("=")[0].endswith(".help") for arg in rest):
        from raylit.cli.config import describe

        describe(rest)
        return
    options, rest = _take_options(command, rest)
    if options.verbose:
        os.environ["RAYLIT_VERBOSE"] = "1"
    else:
        logging.getLogger("mlflow.store.db.utils").setLevel(
            logging.WARNING
        )  # the tables it creates in a new database
    if command == "ui":
        from raylit.cli.ui import serve

        serve(options.backend_store_uri, options.host, options.port, options.auth)
        return
    if options.ray_address:
        os.environ["RAY_ADDRESS"] = options.ray_address
    if command == "tune":
        from raylit.cli.sweep import tune

        tune(rest, options)
    else:
        from raylit.cli.run import run

        run(command, rest, options)


def _take_options(command: str, args: list[str]) -> tuple[argparse.Namespace, list[str]]:
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
    if command == "tune":
        args, behind = _split_at_retrain(args)
        parser.set_defaults(behind_retrain=behind)
    options, rest = parser.parse_known_args(args)
    if command == "ui" and rest:
        raise ConfigError(
            f"{rest[0]}: raylit ui has no such"
            f" flag.{did_you_mean(rest[0], ('--auth', '--backend-store-uri', '--host', '--port', '--verbose'))}"
        )
    return options, rest


def _split_at_retrain(args: list[str]) -> tuple[list[str], list[str]]:
    """Return the flags up to --retrain, and those behind it, which are those of its fit alone."""
    for index, arg in enumerate(args):
        if arg.partition("=")[0] == "--retrain":
            end = index + 1
            if arg == "--retrain" and args[end : end + 1] and not args[end].startswith("-"):
                end += 1
            return args[:end], args[end:]
    return args, []


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of printing its usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument ") + ".")


def _import_from_here() -> None:
    """Let `class_path.

    Examples.digits.LitDigits` find the folder `examples` in the current one, as `python -m` would.
    """
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
