"""That the suites find what is wrong: each is run against something that breaks one rule."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit.testing
from raylit.callbacks import Callback
from raylit.engine.worker import run_job
from raylit.launch import LocalLauncher
from raylit.loggers import CSVLogger, Logger
from raylit.testing import CallbackConformance, LauncherConformance, LoggerConformance
from tests.deadlines import stretched


class Misspelled(Callback):
    def on_epoch_finish(self) -> None: ...


class DrawsRandomNumbers(Callback):
    def on_train_batch_end(self, *args: Any) -> None:
        torch.rand(1)


class CannotTravel(Callback):
    def on_train_start(self, *args: Any) -> None:
        self.function = lambda: None


class StoresObjects(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"object": object()}


class KeyChanges(Callback):
    key = 0

    @property
    def state_key(self) -> str:
        return str(self.key)

    def on_train_start(self, *args: Any) -> None:
        self.key += 1


class TrainsLessAfterAResumption(Callback):
    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        trainer.limit_train_batches = 1


class HidesExceptions(Callback):
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        raise ZeroDivisionError


class WritesInATrialRun(Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
        (Path(trainer.default_root_dir) / "file").touch()


class OnlyFits(Callback):
    def on_test_start(self, *args: Any) -> None:
        raise AttributeError


@pytest.mark.parametrize(
    ("kind", "test", "error"),
    [
        (Misspelled, "test_its_events_exist", AssertionError),
        (DrawsRandomNumbers, "test_it_does_not_change_the_weights", AssertionError),
        (CannotTravel, "test_it_can_be_pickled_before_and_after", Exception),
        (StoresObjects, "test_its_state_is_plain_data", TypeError),
        (KeyChanges, "test_its_state_is_plain_data", AssertionError),
        (
            TrainsLessAfterAResumption,
            "test_a_run_that_is_resumed_ends_in_the_same_place",
            AssertionError,
        ),
        (HidesExceptions, "test_an_exception_passes_through", ZeroDivisionError),
        (WritesInATrialRun, "test_it_goes_through_a_trial_run", AssertionError),
        (OnlyFits, "test_it_goes_through_all_stages", AttributeError),
    ],
)
def test_a_callback_that_breaks_a_rule_is_found(
    kind: type[Callback], test: str, error: type[Exception], tmp_path: Path
) -> None:
    suite = CallbackConformance()
    arguments = (kind,) if test == "test_its_events_exist" else (kind, tmp_path)
    with pytest.raises(error):
        getattr(suite, test)(*arguments)


class Loses(CSVLogger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if step != 7:
            super().log_metrics(metrics, step)


class Blocks(CSVLogger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        time.sleep(0.003)


class Raises(CSVLogger):
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(value != value for value in metrics.values()):
            raise ValueError("NaN")
        super().log_metrics(metrics, step)


class Reads(LoggerConformance):
    def history(self, logger: Logger) -> list[tuple[str, int, float]]:
        import csv

        assert logger.log_dir is not None
        with open(Path(logger.log_dir) / "metrics.csv", newline="") as file:
            return [
                (key, int(row["step"]), float(row[key]))
                for row in csv.DictReader(file)
                for key in row
                if row[key] and key != "step"
            ]


@pytest.mark.parametrize(
    ("kind", "test", "error"),
    [
        (Loses, "test_finalize_writes_everything", AssertionError),
        (Blocks, "test_log_metrics_does_not_block", AssertionError),
        (Raises, "test_nothing_raises", ValueError),
    ],
)
def test_a_logger_that_breaks_a_rule_is_found(
    kind: type[CSVLogger], test: str, error: type[Exception], tmp_path: Path
) -> None:
    logger = kind(tmp_path)
    logger.open(default_root_dir=str(tmp_path), tags={})
    with pytest.raises(error):
        getattr(Reads(), test)(logger)


class LosesTheResult(LocalLauncher):
    def launch(self, job: Any) -> Any:
        return type(super().launch(job))()


class WorksOnCopies(LocalLauncher):
    def launch(self, job: Any) -> Any:
        from ray import cloudpickle

        return run_job(cloudpickle.loads(cloudpickle.dumps(job)))


class WrapsErrors(LocalLauncher):
    def launch(self, job: Any) -> Any:
        try:
            return super().launch(job)
        except Exception as error:
            raise RuntimeError("a worker failed") from error


@pytest.mark.parametrize(
    ("kind", "test", "error"),
    [
        (LosesTheResult, "test_what_a_fit_leaves", AssertionError),
        (LosesTheResult, "test_predictions_come_in_the_order_of_the_data", TypeError),
        (WorksOnCopies, "test_a_second_fit_and_a_resumed_one_go_on", AssertionError),
        (WrapsErrors, "test_the_user_s_exception_is_raised_here", RuntimeError),
    ],
)
def test_a_launcher_that_breaks_a_rule_is_found(
    kind: type[LocalLauncher],
    test: str,
    error: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = LauncherConformance()
    make_trainer = LauncherConformance.trainer.__wrapped__(suite, kind, tmp_path, monkeypatch)  # type: ignore[attr-defined]
    arguments = {"trainer": make_trainer, "tmp_path": tmp_path}
    names = getattr(suite, test).__code__.co_varnames[1 : getattr(suite, test).__code__.co_argcount]
    with pytest.raises(error):
        getattr(suite, test)(**{name: arguments[name] for name in names})


def test_a_fixture_that_was_not_overridden_says_so() -> None:
    for suite in (CallbackConformance(), LauncherConformance(), LoggerConformance()):
        make: Any = type(suite).make
        with pytest.raises(NotImplementedError):
            make.__wrapped__(suite, *([] if isinstance(suite, LauncherConformance) else [None]))


def test_the_names_and_that_they_load_what_they_need() -> None:
    assert all(hasattr(raylit.testing, name) for name in raylit.testing.__all__)
    with pytest.raises(AttributeError, match="'Nothing'"):
        _ = raylit.testing.Nothing  # type: ignore[attr-defined]
    script = (
        "import sys, raylit.testing; print('pytest' in sys.modules);"
        " raylit.testing.LoggerConformance; print('pytest' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(120),
        check=True,
    )
    assert done.stdout.split() == ["False", "True"]
