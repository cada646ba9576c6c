"""Code that runs at the events of a run. `Callback` is the contract; each of the others is one file."""

from collections.abc import Iterable

from raylit.callbacks.batch_size_finder import BatchSizeFinder
from raylit.callbacks.callback import Callback
from raylit.callbacks.checkpoint import Checkpoint
from raylit.callbacks.device_stats_monitor import DeviceStatsMonitor
from raylit.callbacks.early_stopping import EarlyStopping
from raylit.callbacks.finetuning import BackboneFinetuning, BaseFinetuning
from raylit.callbacks.gradient_accumulation_scheduler import GradientAccumulationScheduler
from raylit.callbacks.lambda_callback import LambdaCallback
from raylit.callbacks.learning_rate_finder import LearningRateFinder
from raylit.callbacks.learning_rate_monitor import LearningRateMonitor
from raylit.callbacks.model_checkpoint import ModelCheckpoint
from raylit.callbacks.model_summary import ModelSummary, RichModelSummary
from raylit.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from raylit.callbacks.prediction_writer import BasePredictionWriter
from raylit.callbacks.progress_bar import ProgressBar, RichProgressBar, TQDMProgressBar
from raylit.callbacks.pruning import ModelPruning
from raylit.callbacks.recovery_checkpoint import RecoveryCheckpoint
from raylit.callbacks.regularization import Regularization
from raylit.callbacks.spike_detection import SpikeDetection
from raylit.callbacks.stochastic_weight_averaging import StochasticWeightAveraging
from raylit.callbacks.throughput_monitor import ThroughputMonitor
from raylit.callbacks.timer import Timer
from raylit.callbacks.weight_averaging import EMAWeightAveraging, WeightAveraging

# They watch metrics, so at the end of an epoch they come after the module, which may still log some.
MONITORS = (EarlyStopping, Checkpoint)

__all__ = [
    "MONITORS",
    "BackboneFinetuning",
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
    "in_order",
    "is_monitor",
]


def is_monitor(function: object) -> bool:
    """Tell whether a bound callback watches metrics: it comes after the module at the end of an epoch."""
    return isinstance(getattr(getattr(function, "func", None), "__self__", None), MONITORS)


def in_order(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks in the order in which they are called: finders first, for what they find holds for all others; checkpoints last."""
    return sorted(callbacks, key=lambda one: -1 if isinstance(one, (LearningRateFinder, BatchSizeFinder)) else isinstance(one, Checkpoint))
