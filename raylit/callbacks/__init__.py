"""Code that runs at the events of a run.

`Callback` is the contract; each of the others is one file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader

if TYPE_CHECKING:
    from raylit.callbacks.checkpoints.checkpoint import Checkpoint
    from raylit.callbacks.checkpoints.model_checkpoint import ModelCheckpoint
    from raylit.callbacks.checkpoints.on_exception_checkpoint import OnExceptionCheckpoint
    from raylit.callbacks.checkpoints.recovery_checkpoint import RecoveryCheckpoint
    from raylit.callbacks.display.foreign_bars import RichProgressBar, TQDMProgressBar
    from raylit.callbacks.display.model_summary import ModelSummary, RichModelSummary
    from raylit.callbacks.display.progress_bar import Bar, ProgressBar
    from raylit.callbacks.finders.batch_size_finder import BatchSizeFinder
    from raylit.callbacks.finders.learning_rate_finder import LearningRateFinder
    from raylit.callbacks.lambda_callback import LambdaCallback
    from raylit.callbacks.monitors.device_stats_monitor import DeviceStatsMonitor
    from raylit.callbacks.monitors.early_stopping import EarlyStopping
    from raylit.callbacks.monitors.learning_rate_monitor import LearningRateMonitor
    from raylit.callbacks.monitors.spike_detection import SpikeDetection
    from raylit.callbacks.monitors.throughput_monitor import ThroughputMonitor
    from raylit.callbacks.monitors.timer import Timer
    from raylit.callbacks.pictures.attribution_logger import AttributionLogger
    from raylit.callbacks.pictures.calibration_logger import CalibrationLogger
    from raylit.callbacks.pictures.confusion_matrix_logger import ConfusionMatrixLogger
    from raylit.callbacks.pictures.image_logger import ImageLogger
    from raylit.callbacks.pictures.prediction_table import PredictionTable
    from raylit.callbacks.pictures.text_logger import TextLogger
    from raylit.callbacks.prediction_writer import BasePredictionWriter
    from raylit.callbacks.weights.finetuning import BackboneFinetuning, BaseFinetuning
    from raylit.callbacks.weights.gradient_accumulation_scheduler import (
        GradientAccumulationScheduler,
    )
    from raylit.callbacks.weights.pruning import ModelPruning
    from raylit.callbacks.weights.regularization import Regularization
    from raylit.callbacks.weights.stochastic_weight_averaging import StochasticWeightAveraging
    from raylit.callbacks.weights.weight_averaging import EMAWeightAveraging, WeightAveraging
    from raylit.core.callback import Callback

__all__ = [
    "AttributionLogger",
    "BackboneFinetuning",
    "Bar",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "CalibrationLogger",
    "Callback",
    "Checkpoint",
    "ConfusionMatrixLogger",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "ImageLogger",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "PredictionTable",
    "ProgressBar",
    "RecoveryCheckpoint",
    "Regularization",
    "RichModelSummary",
    "RichProgressBar",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "TextLogger",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]

# Where each name is, loaded when it is first asked for: a fit needs few of them.
_PLACES = {
    "AttributionLogger": "raylit.callbacks.pictures.attribution_logger",
    "BackboneFinetuning": "raylit.callbacks.weights.finetuning",
    "Bar": "raylit.callbacks.display.progress_bar",
    "BaseFinetuning": "raylit.callbacks.weights.finetuning",
    "BasePredictionWriter": "raylit.callbacks.prediction_writer",
    "BatchSizeFinder": "raylit.callbacks.finders.batch_size_finder",
    "CalibrationLogger": "raylit.callbacks.pictures.calibration_logger",
    "Callback": "raylit.core.callback",
    "Checkpoint": "raylit.callbacks.checkpoints.checkpoint",
    "ConfusionMatrixLogger": "raylit.callbacks.pictures.confusion_matrix_logger",
    "DeviceStatsMonitor": "raylit.callbacks.monitors.device_stats_monitor",
    "EMAWeightAveraging": "raylit.callbacks.weights.weight_averaging",
    "EarlyStopping": "raylit.callbacks.monitors.early_stopping",
    "GradientAccumulationScheduler": "raylit.callbacks.weights.gradient_accumulation_scheduler",
    "ImageLogger": "raylit.callbacks.pictures.image_logger",
    "LambdaCallback": "raylit.callbacks.lambda_callback",
    "LearningRateFinder": "raylit.callbacks.finders.learning_rate_finder",
    "LearningRateMonitor": "raylit.callbacks.monitors.learning_rate_monitor",
    "ModelCheckpoint": "raylit.callbacks.checkpoints.model_checkpoint",
    "ModelPruning": "raylit.callbacks.weights.pruning",
    "ModelSummary": "raylit.callbacks.display.model_summary",
    "OnExceptionCheckpoint": "raylit.callbacks.checkpoints.on_exception_checkpoint",
    "PredictionTable": "raylit.callbacks.pictures.prediction_table",
    "ProgressBar": "raylit.callbacks.display.progress_bar",
    "RecoveryCheckpoint": "raylit.callbacks.checkpoints.recovery_checkpoint",
    "Regularization": "raylit.callbacks.weights.regularization",
    "RichModelSummary": "raylit.callbacks.display.model_summary",
    "RichProgressBar": "raylit.callbacks.display.foreign_bars",
    "SpikeDetection": "raylit.callbacks.monitors.spike_detection",
    "StochasticWeightAveraging": "raylit.callbacks.weights.stochastic_weight_averaging",
    "TQDMProgressBar": "raylit.callbacks.display.foreign_bars",
    "TextLogger": "raylit.callbacks.pictures.text_logger",
    "ThroughputMonitor": "raylit.callbacks.monitors.throughput_monitor",
    "Timer": "raylit.callbacks.monitors.timer",
    "WeightAveraging": "raylit.callbacks.weights.weight_averaging",
}

# finds Lightning's paths too, which no module here imports
if not TYPE_CHECKING:  # which finds a name that is not there
    __getattr__ = attribute_loader(__name__, _PLACES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
