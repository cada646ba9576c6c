"""Runs a script that was written for Lightning: `python -m raylit.as_lightning script.py ...`.

The script is the main module, as if it had been started itself: its classes are `__main__`'s, and
processes that are started anew run it under `__mp_main__` as they would any script.
"""

from __future__ import annotations

import os
import sys


def script_of(arguments: list[str]) -> str:
    """Return the path of the script to run.

    Raises:
        SystemExit: none was given, or there is no such file.
    """
    if len(arguments) < 2 or arguments[1] in ("-h", "--help"):
        raise SystemExit("Usage: python -m raylit.as_lightning script.py [arguments of the script]")
    if not os.path.isfile(arguments[1]):
        raise SystemExit(
            f"python -m raylit.as_lightning: there is no file {arguments[1]!r}. Give the path of"
            " the script, then its own arguments."
        )
    return os.path.abspath(arguments[1])


if __name__ == "__main__":
    __file__ = script_of(sys.argv)
    sys.argv = sys.argv[1:]
    sys.path[0] = os.path.dirname(__file__)
elif __name__ == "__mp_main__":  # in a new process, which got the arguments as they were left
    __file__ = os.path.abspath(sys.argv[0])

if __name__ in ("__main__", "__mp_main__"):
    with open(__file__, "rb") as script:
        exec(compile(script.read(), __file__, "exec"), globals())
