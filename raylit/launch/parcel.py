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
        parts: what it is made of, by the names a user knows, to say which of them cannot be pickled.

    Raises:
        ConfigError: it cannot be pickled.
    """

    def __init__(self, content: Any, parts: Mapping[str, Any]) -> None:
        try:
            self.pickled = cloudpickle.dumps(content)
        except Exception as error:  # pickling runs the code of user's classes
            culprits = [name for name, part in parts.items() if not _can_be_pickled(part)]
            raise ConfigError(
                f"{', '.join(culprits) or 'The job'} cannot be sent to the workers: {error}. Make open files, connections, locks and generators"
                " where they are used, in setup() or on first use, rather than in __init__."
            ) from error
        self.folder = os.getcwd()
        self.search_path = [os.path.abspath(path) for path in sys.path]

    def unpack(self) -> Any:
        """Return the object. Modules that the driver finds are found, and relative paths mean the same, where this machine has them."""
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        sys.path.extend(path for path in self.search_path if path not in sys.path)
        return cloudpickle.loads(self.pickled)


def _can_be_pickled(part: Any) -> bool:
    try:
        cloudpickle.dumps(part)
    except Exception:  # as above
        return False
    return True
