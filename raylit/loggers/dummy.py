"""DummyLogger: stands where a logger is expected and nothing is to be recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raylit.loggers.base import Logger


class DummyExperiment:
    """Takes any call and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what pickle and copy ask for
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getitem__(self, index: Any) -> DummyExperiment:
        return self


class DummyLogger(Logger):
    """A logger that records nothing, whatever user code calls on it or on its `experiment`.

    Example:
        >>> DummyLogger().experiment.add_scalar("loss", 1.0)
    """

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def experiment(self) -> DummyExperiment:
        return DummyExperiment()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...

    def log_hyperparams(self, params: Mapping[str, Any], *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return DummyExperiment()

    def __getitem__(self, index: Any) -> DummyLogger:
        return self
