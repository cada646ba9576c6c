from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from raylit.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    ProgressBar,
    Regularization,
    RichModelSummary,
    SpikeDetection,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from raylit.testing import CallbackConformance, TinyModel


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
        return lambda: ModelCheckpoint(
            tmp_path / "kept",
            monitor="val_loss",
            save_top_k=2,
            save_last=True,
            save_on_exception=True,
        )

    def test_it_goes_through_a_trial_run(
        self, make: Callable[[], Callback], tmp_path: Path
    ) -> None:
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
        return lambda: Regularization(
            l1=1e-3, l2=1e-2, groups={"layer.bias": {"l2": 0.1}}, log_penalty=True
        )


class TestGradientAccumulationScheduler(CallbackConformance):
    changes_training = True

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: GradientAccumulationScheduler({1: 2})


class TestWeightAveraging(CallbackConformance):
    changes_training = True

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return WeightAveraging


class TestEMAWeightAveraging(CallbackConformance):
    changes_training = True

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: EMAWeightAveraging(decay=0.9, update_every_n_steps=2)


class TestStochasticWeightAveraging(CallbackConformance):
    changes_training = True

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: StochasticWeightAveraging(0.05, swa_epoch_start=1)


class TestModelPruning(CallbackConformance):
    changes_training = True

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: ModelPruning("l1_unstructured", amount=0.2)


class TestModelPruningWithMasks(CallbackConformance):
    changes_training = True

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: ModelPruning(
            "l1_unstructured", make_pruning_permanent=False, use_lottery_ticket_hypothesis=False
        )


class TestSpikeDetection(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: SpikeDetection(rtol=100.0)


class WithBackbone(TinyModel):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.backbone(x))


class TestBackboneFinetuning(CallbackConformance):
    changes_training = True
    model = WithBackbone

    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: BackboneFinetuning(1, train_bn=False)


class TestLambdaCallback(CallbackConformance):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: LambdaCallback(on_train_epoch_end=_print_epoch)


def _print_epoch(trainer: Any, module: Any) -> None:
    trainer.print(trainer.current_epoch)
