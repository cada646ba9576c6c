"""State that the trials of one process share and must not leave to each other."""

from __future__ import annotations

import gc
import logging
import os
import random
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from raylit.runtime import messages, rng
from raylit.runtime.messages import warn


@dataclass(frozen=True)
class ProcessSetting:
    """One of torch's settings of the whole process: how it is read, and how it is set."""

    read: Callable[[], object]
    write: Callable[..., object]


def _attribute(owner: object, name: str) -> ProcessSetting:
    return ProcessSetting(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


SETTINGS = (
    ProcessSetting(torch.get_default_dtype, torch.set_default_dtype),
    ProcessSetting(torch.get_num_threads, torch.set_num_threads),
    ProcessSetting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    ProcessSetting(
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    ProcessSetting(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.autograd.set_detect_anomaly(*value),
    ),
    ProcessSetting(
        torch.multiprocessing.get_sharing_strategy, torch.multiprocessing.set_sharing_strategy
    ),
    _attribute(torch.backends.cudnn, "benchmark"),
    _attribute(torch.backends.cudnn, "deterministic"),
    _attribute(torch.backends.cudnn, "enabled"),
    _attribute(torch.backends.cudnn, "allow_tf32"),
    _attribute(torch.backends.cuda.matmul, "allow_tf32"),
    ProcessSetting(np.geterr, lambda value: np.seterr(**value)),
    ProcessSetting(np.get_printoptions, lambda value: np.set_printoptions(**value)),
)


class ProcessState:
    """The state of this process as a trial finds it, to which it is put back for the next one.

    Covered are the random generators, environment, working directory, `sys.path`, warning filters,
    logging, warnings given once, and torch's and numpy's settings of the whole process; those of a
    thread, such as the default device, end with the thread in which a trial runs. Not covered is
    the state that user code keeps in its own modules and classes: a sweep with `isolate: true` has
    a process for each trial.
    """

    def __init__(self) -> None:
        self._random = rng.state()
        self._environment = dict(os.environ)
        self._folder = os.getcwd()
        self._path = list(sys.path)
        self._filters = list(warnings.filters)
        self._warned = set(messages.warned)
        self._settings = [setting.read() for setting in SETTINGS]
        self._loggers = {name: _logging_of(name) for name in _logger_names()}
        self._threads = set(threading.enumerate())
        # A collection between two trials looks at what trials made, not at all of torch and mlflow,
        # which took 0.5 s on an idle machine
        gc.collect()
        gc.freeze()

    def restore(self) -> None:
        """Put the process back, and free the memory of the trial before."""
        for setting, value in zip(SETTINGS, self._settings, strict=True):
            if setting.read() != value:
                setting.write(value)
        rng.restore(self._random)
        _set_environment(self._environment)
        os.chdir(self._folder)
        sys.path[:] = self._path
        warnings.filters[:] = self._filters  # type: ignore[index]
        warnings.simplefilter("default", append=True)  # tells the registries that filters changed
        warnings.filters[:] = self._filters  # type: ignore[index]
        messages.warned.clear()
        messages.warned.update(self._warned)
        for name in _logger_names():
            _set_logging(name, self._loggers.get(name))
        self._end_active_run()
        self._look_at_threads()
        gc.collect()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _look_at_threads(self) -> None:
        """Say which threads a trial left, which nobody else can end; daemon threads may stay."""
        left = [
            thread.name
            for thread in threading.enumerate()
            if thread not in self._threads and not thread.daemon
        ]
        if left:
            warn(
                f"A trial left threads that run on beside the next one: {', '.join(left)}. End them"
                " in teardown(), or give each trial a process of its own with isolate: true."
            )

    @staticmethod
    def _end_active_run() -> None:
        """End a run of MLflow that user code has left active."""
        mlflow = sys.modules.get("mlflow")
        while mlflow is not None and mlflow.active_run() is not None:
            warn("A trial left an MLflow run of its own active; it is ended.")
            mlflow.end_run()


def seed_of(seed: int, number: int) -> int:
    """Return the seed of the trial with this number: the same on any process and in any order."""
    return random.Random(f"raylit sweep {seed} trial {number}").randrange(2**32)


def _logger_names() -> list[str]:
    """Return the names of all loggers, the root's is empty."""
    return ["", *(name for name in logging.root.manager.loggerDict)]


def _logging_of(name: str) -> tuple[int, bool, bool, list[logging.Handler]]:
    logger = logging.getLogger(name)
    return logger.level, logger.disabled, logger.propagate, list(logger.handlers)


def _set_logging(name: str, state: tuple[int, bool, bool, list[logging.Handler]] | None) -> None:
    if state is None:
        return  # of a module that was imported since
    logger = logging.getLogger(name)
    level, logger.disabled, logger.propagate, handlers = state
    if logger.level != level:
        logger.setLevel(level)
    if logger.handlers != handlers:
        logger.handlers[:] = handlers


def _set_environment(wanted: dict[str, str]) -> None:
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
