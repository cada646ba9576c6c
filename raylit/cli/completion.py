"""`raylit --print_completion bash`: completion of commands and flags in a shell."""

from __future__ import annotations

import argparse
import inspect
import re

import shtab

from raylit.cli.config import ARGUMENTS
from raylit.cli.data import ACTIONS
from raylit.cli.diagnosis import BASES, KEYS, OWN_FLAGS
from raylit.cli.help import COMMANDS, HELP
from raylit.errors import ConfigError, did_you_mean
from raylit.trainer.trainer import Trainer

FLAG = re.compile(r"(?<![\w.])--?[a-z][\w.-]*")
EXAMPLES = ("--trainer.NAME", "--model.lr")  # of the help, and no flags
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
            f"--print_completion {shell}: there is none for"
            f" it.{did_you_mean(shell, shtab.SUPPORTED_SHELLS)}"
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
        if command == "data":
            one.add_argument("action", choices=ACTIONS)
            files = one.add_argument("files", nargs="*")
            files.complete = shtab.FILE  # type: ignore[attr-defined]
        names: list[str] = []
        if "--trainer." in HELP[command]:  # it takes a config
            keys = [key for key in KEYS if key != "trainer"]
            own = [*ARGUMENTS.get(command, ()), *OWN_FLAGS.get(command, ())]
            described = [f"{key}.help" for key in ("trainer", *BASES)]
            names = [f"--{name}" for name in ("config", *keys, *own, *trainer, *described)]
            names.append("-c")
        for name in dict.fromkeys([*names, *FLAG.findall(HELP[command])]):
            if name in EXAMPLES or name in one._option_string_actions:
                continue
            added = one.add_argument(name)
            if name.removeprefix("--") in OF_FILES:
                added.complete = shtab.FILE  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell)
    return script
