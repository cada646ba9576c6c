"""Every exception raylit raises on purpose.

    RaylitError
    |-- ConfigError(ValueError)             an argument, a hook's return value or a config file
    |   |                                   is wrong
    |   |-- WrongTypeError(TypeError), WrongStateError(RuntimeError),
    |   |   NoAttributeError(AttributeError)
    |   |                                   the same, where Lightning's users may catch these
    |   `-- DataError                       data is missing, empty or cannot be sharded
    |       `-- DataTypeError(TypeError)    it is of no type that can be read
    |-- CheckpointError(RuntimeError)       a checkpoint is missing, torn, foreign or unsafe to load
    |   |-- NotSavedError                   it could not be written: no space, no permission
    |   |-- UnsavableError                  what was to be saved is nothing that one can hold
    |   `-- CheckpointNotFoundError(FileNotFoundError) there is none
    |       `-- NoBestCheckpointError(ValueError) no best one
    |-- LaunchError(RuntimeError)           processes could not be started, or ended without
    |   |                                   a result
    |   `-- NoRoomError (a ConfigError too) more was asked for than the cluster can ever have
    |-- MissingPackageError(ImportError)    an optional package is not installed
    `-- TrainingSpikeException(RuntimeError) the loss jumped, and SpikeDetection ended training

A text says what happened, why, and the fix as code or flag. Some texts begin with Lightning's own
words for the error, which users search for; raylit's follow, and may say the same again. Errors of
user code are never wrapped: they pass through with a note.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RaylitError(Exception):
    """Base of all exceptions raised by raylit on purpose."""


class ConfigError(RaylitError, ValueError):
    """An argument, a hook's return value or a config file is wrong.

    Known to Lightning users as `MisconfigurationException`.
    """


class WrongTypeError(ConfigError, TypeError):
    """A ConfigError that Lightning's users may catch as a TypeError."""


class WrongStateError(ConfigError, RuntimeError):
    """A ConfigError that Lightning's users may catch as a RuntimeError."""


class NoAttributeError(ConfigError, AttributeError):
    """A ConfigError that Lightning's users may catch as an AttributeError."""


class DataError(ConfigError):
    """Data is missing, empty or cannot be sharded."""


class DataTypeError(DataError, TypeError):
    """Data is of no type that can be read."""


class CheckpointError(RaylitError, RuntimeError):
    """A checkpoint is missing, torn, foreign or unsafe to load."""


class NotSavedError(CheckpointError):
    """A checkpoint could not be written, for want of space or permission.

    What stood in its place is untouched.
    """


class UnsavableError(CheckpointError):
    """A checkpoint cannot hold the thing that was to be saved, or not at this point."""


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """There is no checkpoint where one was to be."""


class NoBestCheckpointError(CheckpointNotFoundError, ValueError):
    """The best checkpoint was asked for, and there is none."""


class LaunchError(RaylitError, RuntimeError):
    """Processes could not be started, or ended without a result."""


class NoRoomError(LaunchError, ConfigError):
    """Workers ask for more than the cluster has or can get, and would be awaited without end."""


class MissingPackageError(RaylitError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, wanted_by: str, extra: str | None = None) -> None:
        self._arguments = (package, wanted_by, extra)
        fix = f"pip install 'raylit[{extra}]'" if extra else f"pip install {package}"
        super().__init__(
            f"{wanted_by} needs the package {package}, which is not installed. Run: {fix}"
        )

    def __reduce__(self) -> tuple[type, tuple[str, str, str | None]]:
        return type(self), self._arguments


class TrainingSpikeException(RaylitError, RuntimeError):
    """The loss jumped, and SpikeDetection ended training."""

    def __init__(self, batch_idx: int) -> None:
        self.batch_idx = batch_idx
        super().__init__(
            f"Training spike detected in batch {batch_idx}. SpikeDetection has written down which"
            " batches to leave out: remove them from the data and go on from a checkpoint of"
            " before."
        )

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.batch_idx,)


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the option nearest to `word`, or nothing."""
    near = difflib.get_close_matches(word, list(options), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""


def foreign_hint(value: object) -> str:
    """Return a sentence for those whose object or class comes from Lightning, else nothing."""
    kind = value if isinstance(value, type) else type(value)
    origins = {cls.__module__.split(".")[0] for cls in kind.__mro__}
    if origins & {"lightning", "pytorch_lightning"}:
        return (
            " It is one of Lightning: write `import raylit as pl` instead of `import"
            " lightning.pytorch as pl`."
        )
    return ""


def what_it_is(value: object) -> str:
    """Return in words what was given in the place of an object: an object of a class, or a class.

    Example:
        >>> what_it_is(3), what_it_is(dict)
        ('a builtins.int', 'the class dict: give an object of it, such as dict()')
    """
    if isinstance(value, type):
        name = value.__qualname__.rpartition(".")[2]
        return f"the class {name}: give an object of it, such as {name}()"
    return f"a {type(value).__module__}.{type(value).__qualname__}"


class Terminated(SystemExit):
    """The process was asked to end by SIGTERM and has come to a place where it can.

    Exit code 143.
    """

    def __init__(self, code: int = 143) -> None:
        super().__init__(code)


class Stopped(SystemExit):
    """The run was ended from outside in good order, such as a trial by a sweep's scheduler.

    Its loggers close as after success.
    """

    def __init__(self) -> None:
        super().__init__(0)


class SearchDone(Exception):
    """The Tuner wanted a search and no training: the job ends here, in good order."""
