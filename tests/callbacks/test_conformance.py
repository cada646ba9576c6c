from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from raylit.callbacks import (
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    Regularization,
    RichModelSummary,
    Timer,
)
from raylit.testing import CallbackConformance


class TestEarlyStopping(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: EarlyStopping("val_loss", patience=9)


class TestEarlyStoppingThatStops(CallbackConformance):
    changes_training = True

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: EarlyStopping("val_loss", stopping_threshold=0.0, patience=2, min_delta=1.0)


class TestModelCheckpoint(CallbackConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Callback]:
        return lambda: ModelCheckpoint(tmp_path / "kept", monitor="val_loss", save_top_k=2, save_last=True, save_on_exception=True)

    def test_it_goes_through_a_trial_run(self, make: Callable[[], Callback], tmp_path: Path) -> None:
        super().test_it_goes_through_a_trial_run(make, tmp_path)
        assert not (tmp_path / "kept").exists()


class TestModelCheckpointEveryStep(CallbackConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Callback]:
        return lambda: ModelCheckpoint(every_n_train_steps=1, save_last="link")


class TestTimer(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: Timer(timedelta(hours=1))


class TestLearningRateMonitor(CallbackConformance):
    trainer_arguments: dict[str, Any] = {"logger": True}  # noqa: RUF012

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: LearningRateMonitor(log_momentum=True, log_weight_decay=True)


class TestLearningRateFinder(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: LearningRateFinder(num_training_steps=3, update_attr=False)


class TestBatchSizeFinder(CallbackConformance):
    """The size it begins with is that of the model, and the largest."""

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: BatchSizeFinder(init_val=4, max_val=4, steps_per_trial=1)


class TestModelSummary(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: ModelSummary(max_depth=2)


class TestRichModelSummary(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return RichModelSummary


class TestProgressBar(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return ProgressBar


class TestRegularization(CallbackConformance):
    changes_training = True

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: Regularization(l1=1e-3, l2=1e-2, groups={"layer.bias": {"l2": 0.1}}, log_penalty=True)


class TestLambdaCallback(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: LambdaCallback(on_train_epoch_end=_print_epoch)


def _print_epoch(trainer: Any, module: Any) -> None:
    trainer.print(trainer.current_epoch)
