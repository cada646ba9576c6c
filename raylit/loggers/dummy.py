"""Stands in for a logger where nothing is to be written, such as in a dry run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from raylit.core.logger import Logger
from raylit.runtime.messages import rank

if TYPE_CHECKING:
    from raylit.runtime.aliases import Experiment

__all__ = ["DummyExperiment", "DummyLogger", "Logger", "rank_zero_experiment"]

T = TypeVar("T")


class DummyExperiment:
    """Has every method, and none does anything.

    So `experiment.add_scalar(...)` and `experiment[0].add_image(...)` work.
    """

    def nop(self, *args: object, **kwargs: object) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):  # copy and pickle ask for such names, and must not find them
            raise AttributeError(name)
        return self.nop

    def __getitem__(self, index: object) -> DummyExperiment:
        return self

    def __setitem__(self, index: object, value: object) -> None:
        """Do nothing."""


class DummyLogger(Logger):
    """Takes the place of the loggers in a dry run, so that user code which logs still works.

    Example:
        >>> DummyLogger().experiment.add_scalar("loss", 1.0)
    """

    hparams_initial: ClassVar[dict[str, object]] = {}  # every other name is a method

    def __init__(self) -> None:
        self._experiment = DummyExperiment()

    @property
    def experiment(self) -> DummyExperiment:
        """An object with every method."""
        return self._experiment

    @property
    def name(self) -> str:
        """Empty."""
        return ""

    @property
    def version(self) -> str:
        """Empty."""
        return ""

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def __getitem__(self, index: object) -> DummyLogger:
        return self

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _nothing


def _nothing(*args: object, **kwargs: object) -> None:
    """Do nothing."""


def rank_zero_experiment(function: Callable[[T], Experiment]) -> Callable[[T], Experiment]:
    """Decorate the `experiment` of a logger so that ranks other than 0 get one that does nothing.

    Example:
        >>> class MyLogger(Logger):
        ...     @property
        ...     @rank_zero_experiment
        ...     def experiment(self):
        ...         return self._connection
    """

    @functools.wraps(function)
    def experiment(self: T) -> Experiment:
        return function(self) if rank() == 0 else DummyExperiment()

    return experiment
