"""Base of the loggers of hosted services."""

from __future__ import annotations

import importlib
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar

from raylit.core.callback import Checkpoint
from raylit.core.logger import Logger
from raylit.errors import MissingPackageError
from raylit.loggers.dummy import DummyExperiment
from raylit.runtime.aliases import Experiment
from raylit.runtime.messages import rank

if TYPE_CHECKING:
    from types import ModuleType


class HostedLogger(Logger):
    """Sends logged values to a service, through the service's own package.

    The connection is made on rank 0, on first use; it does not travel to other processes. The
    package sends in the background; it keeps the values and tries again by itself.

    Args:
        prefix: put before the names of metrics.
        experiment: the connection, if there is one already.
    """

    PACKAGE: ClassVar[str]
    LOGGER_JOIN_CHAR: ClassVar[str] = "-"

    def __init__(self, prefix: str = "", experiment: Experiment = None) -> None:
        self._prefix = prefix
        self._experiment = experiment
        self._sent: dict[str, float] = {}  # checkpoints, with the times of their files
        self.library()

    def library(self) -> ModuleType:
        """Return the service's package.

        Raises:
            MissingPackageError: it is not installed.
        """
        try:
            return importlib.import_module(self.PACKAGE)
        except ImportError:
            raise MissingPackageError(self.PACKAGE, type(self).__name__) from None

    def connect(self) -> Experiment:
        """Return a new connection. To override."""
        raise NotImplementedError

    @property
    def experiment(self) -> Experiment:
        """The package's own object, for whatever it can do beyond this class.

        On ranks other than 0 it does nothing.
        """
        if rank() != 0:
            return DummyExperiment()
        if self._experiment is None:
            self._experiment = self.connect()
        return self._experiment

    def named(self, metrics: Mapping[str, object]) -> dict[str, object]:
        """Return metrics with the prefix before their names."""
        if not self._prefix:
            return dict(metrics)
        start = f"{self._prefix}{self.LOGGER_JOIN_CHAR}"
        return {f"{start}{name}": value for name, value in metrics.items()}

    def new_files(self, saver: Checkpoint) -> Iterator[tuple[str, list[str]]]:
        """Yield the checkpoints that were not sent yet, each with its aliases."""
        best = getattr(saver, "best_model_path", "")
        last = getattr(saver, "last_model_path", "")
        kept = {*getattr(saver, "best_k_models", {}), best, last}
        for path in sorted(filter(None, kept)):
            time = os.path.getmtime(path) if os.path.exists(path) else None
            if time is None or self._sent.get(path) == time:
                continue
            self._sent[path] = time
            yield path, [name for name, one in (("best", best), ("latest", last)) if one == path]

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_experiment": None}


def flat(params: Mapping[str, object] | Namespace | None) -> dict[str, object]:
    """Return nested hyperparameters as one mapping, with names joined by `/`."""
    given = vars(params) if isinstance(params, Namespace) else dict(params or {})
    found: dict[str, object] = {}
    for name, value in given.items():
        if isinstance(value, (Mapping, Namespace)):
            found.update((f"{name}/{inner}", one) for inner, one in flat(value).items())
        else:
            found[str(name)] = value
    return found
