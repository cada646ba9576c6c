"""How an exception is shown: the user's own lines first, whole tracebacks with --verbose."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import traceback
from pathlib import Path

import raylit
from raylit.errors import RaylitError
from raylit.launch.carried_error import WorkerTraceback
from raylit.runtime.secrets import without_secrets

# A value of thousands of characters, quoted in a message: the rest of the sentence is to be seen.
_LONG_WORD = re.compile(r"(\S{100})\S{200,}")

FOREIGN = tuple(
    os.path.realpath(folder) + os.sep
    for folder in {
        str(Path(raylit.__file__).parent),
        *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")),
    }
)


def show(error: BaseException, is_verbose: bool) -> None:
    """Print an exception that ended a run to stderr."""
    whole = without_secrets("".join(traceback.format_exception(error)))
    own = user_frames(error)
    if is_verbose or (not own and not isinstance(error, RaylitError)):
        print(whole, file=sys.stderr, end="", flush=True)
        return
    lines = ["Traceback, your code only (--verbose shows all):", *own] if own else []
    name = (
        type(error).__name__
        if type(error).__module__ in ("builtins", "raylit.errors")
        else f"{type(error).__module__}.{type(error).__qualname__}"
    )
    lines.append(f"{name}: {error}" if str(error) else name)
    lines.extend(getattr(error, "__notes__", ()))
    print(without_secrets("\n".join(lines)), file=sys.stderr, flush=True)


def show_config_error(error: RaylitError, program: str, is_verbose: bool) -> None:
    """Print the error in a command, a config, an argument or a checkpoint to stderr."""
    if is_verbose or user_frames(error):
        show(error, is_verbose)
    else:
        text = without_secrets(f"{program}: {error}")
        print(_LONG_WORD.sub(r"\1...", text), file=sys.stderr, flush=True)


def user_frames(error: BaseException) -> list[str]:
    """Return the lines of the traceback that lie in the user's own files, as Python prints them.

    Also of an error in a worker.
    """
    blocks = [block.rstrip("\n") for block in traceback.format_tb(error.__traceback__)]
    if isinstance(error.__cause__, WorkerTraceback):
        blocks = [
            block.rstrip("\n")
            for block in re.findall(
                r'^  File "[^\n]+\n(?:    [^\n]*\n)*', str(error.__cause__), re.MULTILINE
            )
        ]
    return [block for block in blocks if _is_users(block)]


def _is_users(block: str) -> bool:
    found = re.match(r'\s*File "([^"]+)"', block)
    if found is None or found[1].startswith("<"):
        return False
    return not os.path.realpath(found[1]).startswith(FOREIGN) and "site-packages" not in found[1]
