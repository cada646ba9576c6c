"""Brings an object from the driver to processes elsewhere, with all they need to unpack it."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle

from raylit.errors import ConfigError
from raylit.launch.on_ray.variables import Variables
from raylit.runtime import beforehand
from raylit.runtime.messages import warn

# Ray refuses functions and classes of more than 95 MiB, and each process that got one would have
# its own copy in memory; of what is in its object store all processes of a node share one.
STORED_BYTES = 10 * 2**20
LARGE_BYTES = 10**9

# Of a folder with code, what is data, and is not sent.
NOT_SENT = [
    ".git",
    ".venv",
    "__pycache__",
    "*.ckpt",
    "*.pt",
    "*.db",
    "*.parquet",
    "mlruns",
    "checkpoints",
    "lightning_logs",
    "raylit_runs",
]


class Pickled:
    """An object, pickled: classes from `__main__` and notebooks by value, others by name.

    A large one goes to Ray's object store, once, however often it is sent; `store` does it where
    Ray is started only after the object is known to be fit for it.

    Args:
        content: the object.
        parts: what it is made of, by the names a user knows, to say which of them cannot be
            pickled, or is large.

    Raises:
        ConfigError: it cannot be pickled.
    """

    def __init__(self, content: object, parts: Mapping[str, object]) -> None:
        try:
            self._pickled: bytes | ray.ObjectRef[bytes] = cloudpickle.dumps(content)
        except Exception as error:  # pickling runs the code of user's classes
            culprits = [name for name, part in parts.items() if _size(part) is None]
            raise ConfigError(
                f"{', '.join(culprits) or 'The job'} cannot be sent to the workers: {error}. Make"
                " open files, connections, locks and generators where they are used, in setup() or"
                " on first use, rather than in __init__; or have ranks of this machine forked, to"
                " which nothing is sent: strategy='ddp_fork', devices=2."
            ) from error
        self.num_bytes = len(self._pickled)
        if self.num_bytes >= LARGE_BYTES:
            _warn_of_size(self.num_bytes, parts)
        self.code = Code.here()
        self.variables = Variables.here({})
        if ray.is_initialized():
            self.store()

    def store(self) -> None:
        """Bring a large object to Ray's object store, once this process is connected."""
        if isinstance(self._pickled, bytes) and self.num_bytes >= STORED_BYTES:
            self._pickled = ray.put(self._pickled)

    def unpack(self) -> Any:
        """Return the object, in a process that does nothing else, such as that of a trial.

        The driver's environment variables are set, those of MLflow's server too; else it is as
        `content`.
        """
        self.variables.set(tracking=True)
        return self.content()

    def content(self) -> Any:
        """Return the object.

        Modules that the driver finds are found, and relative paths mean the same, where this
        machine has them.
        """
        self.code.use()
        pickled = self._pickled
        return cloudpickle.loads(pickled if isinstance(pickled, bytes) else ray.get(pickled))


@dataclass(frozen=True)
class Code:
    """Where the driver finds the user's modules.

    Attributes:
        folder: its working directory.
        script: the script that was started, or None: an installed command, a notebook.
        is_below: whether the script lies below the working directory.
        search_path: where Python looks for modules, in absolute paths.
        beforehand: modules to import before any other.
    """

    folder: str
    script: str | None
    is_below: bool
    search_path: tuple[str, ...]
    beforehand: tuple[str, ...]

    @classmethod
    def here(cls) -> Code:
        """Return that of this process."""
        folder = os.getcwd()
        script = _script()
        is_below = script is not None and script.startswith(folder + os.sep)
        search_path = tuple(os.path.abspath(path) for path in sys.path)
        return cls(folder, script, is_below, search_path, beforehand.modules())

    @property
    def folders(self) -> dict[str, str]:
        """The folders that hold the user's code, each with a path that is there where it is.

        A script elsewhere brings its own folder; the working directory then counts only if modules
        are found in it, as it may be anything: a home folder, the data.
        """
        if self.is_below and self.script is not None:
            return {self.folder: self.script}
        if self.script is None:
            return {self.folder: self.folder}
        found = {os.path.dirname(self.script): self.script}
        return {self.folder: self.folder, **found} if self.folder in self.search_path else found

    @property
    def runtime_env(self) -> dict[str, object]:
        """Ray's description of an environment that has copies of these folders."""
        env: dict[str, object] = {"excludes": NOT_SENT}
        for folder in self.folders:
            if folder == self.folder:
                env["working_dir"] = folder
            else:
                env["py_modules"] = [folder]
        return env

    def use(self) -> None:
        """Have this process, on whatever machine, find the same modules."""
        here = os.getcwd()
        copies = {}
        for folder, evidence in self.folders.items():
            if os.path.exists(evidence):
                continue
            copy = here if folder == self.folder else _copy_of(evidence)
            if copy is not None:
                copies[folder] = copy
        if self.folder not in copies and os.path.isdir(self.folder):
            os.chdir(self.folder)
        for path in self.search_path:
            there = _moved(path, copies)
            if there not in sys.path:
                sys.path.append(there)
        beforehand.use(self.beforehand)


def _script() -> str | None:
    """Return the path of the user's script, or None where an installed command was started."""
    found = getattr(sys.modules.get("__main__"), "__file__", None)
    if found is None:
        return None
    path = os.path.abspath(found)
    installed = [sysconfig.get_path(name) for name in ("scripts", "purelib", "platlib", "stdlib")]
    if any(
        path.startswith(folder + os.sep) for folder in [*installed, *sys.modules["raylit"].__path__]
    ):
        return None
    return path if os.path.isfile(path) else None


def _copy_of(script: str) -> str | None:
    """Return the copy of a script's folder that Ray has unpacked: below a place on the path."""
    folder, name = os.path.split(script)
    copies = (os.path.join(place, os.path.basename(folder)) for place in sys.path)
    return next((copy for copy in copies if os.path.isfile(os.path.join(copy, name))), None)


def _moved(path: str, copies: Mapping[str, str]) -> str:
    """Return where a path is in the copies of folders."""
    for folder, copy in copies.items():
        if path == folder or path.startswith(folder + os.sep):
            return os.path.normpath(os.path.join(copy, os.path.relpath(path, folder)))
    return path


def _warn_of_size(num_bytes: int, parts: Mapping[str, object]) -> None:
    sizes = {name: _size(part) or 0 for name, part in parts.items()}
    largest = max(sizes, key=lambda name: sizes[name], default="The job")
    warn(
        f"{num_bytes / 1e9:.1f} GB are sent to the workers"
        f" ({largest}: {sizes.get(largest, num_bytes) / 1e9:.1f} GB): each holds it twice while it"
        " unpacks it, and the driver once more. Make large data in setup() of a"
        " LightningDataModule, which every worker calls for itself, or read it from a file.",
    )


def _size(part: object) -> int | None:
    """Return the size of a part as it is sent, or None if it cannot be pickled."""
    try:
        return len(cloudpickle.dumps(part))
    except Exception:  # as above
        return None
