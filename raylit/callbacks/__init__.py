"""Code that runs at the events of a run.

`Callback` is the contract; each of the others is one file.
"""

from collections.abc import Iterable

from raylit.callbacks.checkpoints.checkpoint import Checkpoint
from raylit.callbacks.checkpoints.model_checkpoint import ModelCheckpoint
from raylit.callbacks.checkpoints.on_exception_checkpoint import OnExceptionCheckpoint
from raylit.callbacks.checkpoints.recovery_checkpoint import RecoveryCheckpoint
from raylit.callbacks.display.model_summary import ModelSummary, RichModelSummary
from raylit.callbacks.display.progress_bar import ProgressBar, RichProgressBar, TQDMProgressBar
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

# They watch metrics, so at the end of an epoch they come after the module, which may still log
# some.
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
    """Tell whether a bound callback watches metrics.

    It comes after the module at the end of an epoch.
    """
    return isinstance(getattr(getattr(function, "func", None), "__self__", None), MONITORS)


def in_order(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks in the order in which they are called.

    Finders first, for what they find holds for all others; checkpoints last.
    """
    return sorted(
        callbacks,
        key=lambda one: (
            -1
            if isinstance(one, (LearningRateFinder, BatchSizeFinder))
            else isinstance(one, Checkpoint)
        ),
    )


__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
