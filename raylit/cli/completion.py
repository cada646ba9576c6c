"""`raylit --print_completion bash`: what completes commands and flags in a shell."""

from __future__ import annotations

import argparse
import inspect

import shtab

from raylit.cli.config import ARGUMENTS
from raylit.cli.data import ACTIONS
from raylit.cli.diagnosis import BASES, KEYS, OWN_FLAGS
from raylit.cli.help import COMMANDS
from raylit.errors import ConfigError, did_you_mean
from raylit.trainer.trainer import Trainer

UI_FLAGS = ("--auth", "--backend-store-uri", "--host", "--port", "--verbose")
DATA_FLAGS = (
    "--type",
    "--row-group-size",
    "--compression",
    "--columns",
    "--image-size",
    "--force",
    "--rows",
    "--verbose",
)
GENERAL_FLAGS = ("print_config", "verbose")
OF_FILES = ("config", "ckpt_path", "sweep", "output")


def completion(shell: str) -> str:
    """Return a script for a shell.

    Args:
        shell: `bash`, `zsh` or `tcsh`.

    Raises:
        ConfigError: it is another.

    Example:
        >>> print(completion("bash"))  # raylit --print_completion bash >> ~/.bashrc
    """
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(
            f"--print_completion {shell}: there is none for it.{did_you_mean(shell, shtab.SUPPORTED_SHELLS)}"
            f" There are: {', '.join(shtab.SUPPORTED_SHELLS)}. For bash: raylit --print_completion"
            " bash >> ~/.bashrc"
        )
    parser = argparse.ArgumentParser("raylit", allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--print_completion", choices=shtab.SUPPORTED_SHELLS)
    commands = parser.add_subparsers()
    trainer = [f"trainer.{name}" for name in inspect.signature(Trainer).parameters]
    for command in COMMANDS:
        # shtab leaves out commands without a help text
        one = commands.add_parser(command, allow_abbrev=False, help=command)
        if command == "ui":
            for flag in UI_FLAGS:
                one.add_argument(flag)
            continue
        if command == "data":
            one.add_argument("action", choices=ACTIONS)
            files = one.add_argument("files", nargs="*")
            files.complete = shtab.FILE  # type: ignore[attr-defined]
            for flag in DATA_FLAGS:
                one.add_argument(*(("-n", flag) if flag == "--rows" else (flag,)))
            continue
        keys = [key for key in KEYS if key != "trainer"]
        own = [*ARGUMENTS.get(command, ()), *OWN_FLAGS.get(command, ())]
        described = [f"{key}.help" for key in ("trainer", *BASES)]
        names = ("config", *keys, *own, *trainer, *described, "ray.address", *GENERAL_FLAGS)
        for name in dict.fromkeys(names):
            added = one.add_argument(*(("-c",) if name == "config" else ()), f"--{name}")
            if name in OF_FILES:
                added.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script
