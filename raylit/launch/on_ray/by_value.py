"""Brings an object from the driver to a worker in another process, with what is needed to unpack it there."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from ray import cloudpickle

from raylit.errors import ConfigError


class Parcel:
    """An object, pickled: classes from `__main__` and notebooks by value, others by name.

    Args:
        content: the object.
        parts: what it is made of, by the names a user knows, to say which of them cannot be
            pickled.

    Raises:
        ConfigError: it cannot be pickled.
    """

    def __init__(self, content: Any, parts: Mapping[str, Any]) -> None:
        try:
            self.pickled = cloudpickle.dumps(content)
        except Exception as error:  # pickling runs the code of user's classes
            culprits = [name for name, part in parts.items() if not _can_be_pickled(part)]
            raise ConfigError(
                f"{', '.join(culprits) or 'The job'} cannot be sent to the workers: {error}. Make"
                " open files, connections, locks and generators where they are used, in setup() or"
                " on first use, rather than in __init__."
            ) from error
        self.folder, self.evidence = os.getcwd(), evidence_of_code()
        self.search_path = [os.path.abspath(path) for path in sys.path]

    def unpack(self) -> Any:
        """Return the object.

        Modules that the driver finds are found, and relative paths mean the same, where this
        machine has them.
        """
        here = os.getcwd()
        if os.path.exists(self.evidence) and os.path.isdir(self.folder):
            os.chdir(self.folder)
        elif self.folder != here:  # Ray has unpacked a copy of it here
            self.search_path = [self._moved(path, here) for path in self.search_path]
        sys.path.extend(path for path in self.search_path if path not in sys.path)
        return cloudpickle.loads(self.pickled)

    def _moved(self, path: str, here: str) -> str:
        """Return where a path below the driver's folder is in the copy."""
        return (
            os.path.join(here, os.path.relpath(path, self.folder))
            if path.startswith(self.folder + os.sep)
            else path
        )


def evidence_of_code() -> str:
    """Return a path that is there where the user's code is.

    The script's, or the working directory.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    below = script is not None and os.path.abspath(script).startswith(os.getcwd() + os.sep)
    return os.path.abspath(script) if script is not None and below else os.getcwd()


def _can_be_pickled(part: Any) -> bool:
    try:
        cloudpickle.dumps(part)
    except Exception:  # as above
        return False
    return True
