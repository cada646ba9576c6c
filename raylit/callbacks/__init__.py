"""Code that runs at the events of a run.

`Callback` is the contract; each of the others is one file.
"""

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
from raylit.callbacks.prediction_writer import BasePredictionWriter
from raylit.callbacks.weights.finetuning import BackboneFinetuning, BaseFinetuning
from raylit.callbacks.weights.gradient_accumulation_scheduler import GradientAccumulationScheduler
from raylit.callbacks.weights.pruning import ModelPruning
from raylit.callbacks.weights.regularization import Regularization
from raylit.callbacks.weights.stochastic_weight_averaging import StochasticWeightAveraging
from raylit.callbacks.weights.weight_averaging import EMAWeightAveraging, WeightAveraging
from raylit.core.callback import Callback
from raylit.runtime.lazy import attribute_loader

__all__ = [
    "BackboneFinetuning",
    "Bar",
    "BaseFinetuning",
    "BasePredictionWriter",
    "BatchSizeFinder",
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EMAWeightAveraging",
    "EarlyStopping",
    "GradientAccumulationScheduler",
    "LambdaCallback",
    "LearningRateFinder",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelPruning",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RecoveryCheckpoint",
    "Regularization",
    "RichModelSummary",
    "RichProgressBar",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
    "WeightAveraging",
]

__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
