"""The contract of `raylit.loggers.Logger` as tests, for loggers written elsewhere too."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from raylit.callbacks import ModelCheckpoint
from raylit.core.logger import Logger

# What rank 0 does, in a process of its own: {"logger": a pickled Logger, "rows": [(metrics, step)],
# "status": for `finalize`}
_WORKER = """
import pickle, sys
job = pickle.load(sys.stdin.buffer)
logger = pickle.loads(job["logger"])
logger.log_hyperparams(job["params"])
for metrics, step in job["rows"]:
    logger.log_metrics(metrics, step)
    logger.save()
logger.finalize(job["status"])
"""


def log_in_another_process(
    logger: Logger,
    rows: list[tuple[dict[str, float], int]],
    status: str = "success",
    params: Mapping[str, object] | None = None,
) -> None:
    """Pickle `logger` into a new process, as a launcher does with rank 0, and have it log there.

    Args:
        logger: opened.
        rows: metrics and step for each call of `log_metrics`.
        status: for `finalize`.
        params: for `log_hyperparams`.

    Raises:
        RuntimeError: the process failed; its stderr is in the text.
    """
    job = {
        "logger": pickle.dumps(logger),
        "rows": rows,
        "status": status,
        "params": dict(params or {}),
    }
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", _WORKER],
        input=pickle.dumps(job),
        capture_output=True,
        timeout=120,
        env=env,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"The process that logs ended with {done.returncode}:\n{done.stderr.decode()}"
        )


class LoggerConformance:
    """Checks that hold for every logger.

    Subclass it as `Test...`, override `make` and `history`, and the methods for all else that the
    logger can show.

    Example:
        >>> class TestCSVLogger(LoggerConformance):
        ...     @pytest.fixture
        ...     def make(self, tmp_path):
        ...         return lambda: CSVLogger(tmp_path)
        ...
        ...     def history(self, logger):
        ...         return ...  # read metrics.csv
    """

    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Logger]:
        """Return a function that makes a new logger, not opened, that writes below `tmp_path`.

        To override.
        """
        raise NotImplementedError

    def history(self, logger: Logger) -> list[tuple[str, int, float]]:
        """Read the logged values back from the store.

        Name, step and value of each metric, in any order. To override.
        """
        raise NotImplementedError

    def hyperparams(self, logger: Logger) -> Mapping[str, object] | None:
        """Read back the hyperparameters, nested or with dotted names.

        To override if they can be read.
        """
        return None

    def status(self, logger: Logger) -> str | None:
        """Read back the end state of the run. To override if the store has one."""
        return None

    @pytest.fixture
    def opened(self, make: Callable[[], Logger], tmp_path: Path) -> Iterator[Logger]:
        """A logger between `open` and `close`."""
        logger = make()
        logger.open(default_root_dir=str(tmp_path), tags={"raylit.version": "0"})
        yield logger
        logger.finalize("success")
        logger.close("success")

    def test_finalize_writes_everything(self, opened: Logger) -> None:
        """All values are in the store when `finalize` returns."""
        for step in range(150):
            opened.log_metrics({"loss": 1.0 / (step + 1), "epoch": 0.0}, step)
        opened.finalize("success")
        assert [row for row in sorted(self.history(opened)) if row[0] == "loss"] == [
            ("loss", step, 1.0 / (step + 1)) for step in range(150)
        ]

    def test_log_metrics_does_not_block(self, opened: Logger) -> None:
        """The training thread has its call back at once."""
        times_s = []
        for step in range(200):
            start = time.perf_counter()
            opened.log_metrics({"loss": 0.5, "epoch": 0.0}, step)
            times_s.append(time.perf_counter() - start)
        assert sorted(times_s)[len(times_s) // 2] < 0.002

    def test_goes_on_in_other_processes(self, opened: Logger) -> None:
        """Processes that start from the pickled logger, one after the other, write into one run.

        Replayed values stand there once.
        """
        copy = pickle.loads(pickle.dumps(opened))
        assert (copy.name, copy.version, copy.run_id) == (
            opened.name,
            opened.version,
            opened.run_id,
        )
        log_in_another_process(
            opened, [({"loss": 0.5, "epoch": 0.0}, 0), ({"loss": 0.25, "epoch": 0.0}, 1)], "failed"
        )
        log_in_another_process(
            opened,
            [
                ({"loss": 0.25, "epoch": 0.0}, 1),
                ({"loss": 0.125, "accuracy": 0.75, "epoch": 0.0}, 2),
            ],
        )
        metrics = sorted(row for row in self.history(opened) if row[0] != "epoch")
        assert metrics == [
            ("accuracy", 2, 0.75),
            ("loss", 0, 0.5),
            ("loss", 1, 0.25),
            ("loss", 2, 0.125),
        ]

    def test_goes_on_when_opened_again(self, make: Callable[[], Logger], tmp_path: Path) -> None:
        """A second `fit` with the same logger adds to the same run."""
        logger = make()
        for step in range(2):
            logger.open(default_root_dir=str(tmp_path), tags={})
            logger.log_metrics({"loss": 0.5}, step)
            logger.finalize("success")
            logger.close("success")
        assert sorted(self.history(logger)) == [("loss", 0, 0.5), ("loss", 1, 0.5)]

    def test_works_without_a_trainer(self, make: Callable[[], Logger]) -> None:
        """`open` and `close` may be left out."""
        logger = make()
        logger.log_hyperparams({"lr": 0.1})
        logger.log_metrics({"loss": 0.5}, step=3)
        logger.finalize("success")
        assert self.history(logger) == [("loss", 3, 0.5)]

    def test_nested_hyperparameters(self, opened: Logger) -> None:
        """Mappings within mappings, namespaces, lists and None are recorded."""
        opened.log_hyperparams(
            {"model": {"lr": 0.1, "sizes": [1, 2]}, "data": Namespace(batch_size=32), "note": None}
        )
        opened.finalize("success")
        read = self.hyperparams(opened)
        if read is None:
            pytest.skip("this logger cannot show its hyperparameters")
        flat = dict(_flat(read))
        assert flat == {
            "model.lr": "0.1",
            "model.sizes": "[1, 2]",
            "data.batch_size": "32",
            "note": "None",
        }

    def test_statuses_differ(self, make: Callable[[], Logger], tmp_path: Path) -> None:
        """Success, failure and being stopped can be told apart."""
        seen = []
        for status in ("success", "failed", "killed"):
            logger = make()
            logger.open(default_root_dir=str(tmp_path), tags={})
            logger.finalize(status)
            logger.close(status)
            seen.append(self.status(logger))
        if seen == [None] * 3:
            pytest.skip("this logger has no statuses")
        assert len(set(seen)) == 3

    def test_nothing_raises(self, opened: Logger) -> None:
        """Odd names and values, calls that do not apply and repeated ones stop no training."""
        opened.log_metrics(
            {"nan": math.nan, "inf": -math.inf, "": 0.0, "a@b//../c": 1.0, "x" * 400: 2.0}, 0
        )
        opened.log_metrics({}, 1)
        opened.log_metrics({"loss": 0.5})
        opened.log_hyperparams({})
        opened.log_hyperparams({"lr": 0.1})
        opened.log_hyperparams({"lr": 0.2, "a@b//../c": 1, "long": "x" * 10_000})
        opened.log_graph(None)
        opened.save()
        opened.after_save_checkpoint(ModelCheckpoint())  # it has saved nothing
        assert opened.save_dir is None or isinstance(opened.save_dir, str)
        assert opened.log_dir is None or isinstance(opened.log_dir, str)
        opened.finalize("failed")
        opened.finalize("failed")

    def test_a_logger_that_is_not_used_leaves_nothing(
        self, make: Callable[[], Logger], tmp_path: Path
    ) -> None:
        """Making and dropping one writes nothing."""
        before = sorted(tmp_path.rglob("*"))
        make().finalize("success")
        assert sorted(tmp_path.rglob("*")) == before


def _flat(values: Mapping[str, object] | Namespace, prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in (vars(values) if isinstance(values, Namespace) else values).items():
        if isinstance(value, Mapping | Namespace):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
