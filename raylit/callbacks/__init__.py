"""Code that runs at the events of a run. `Callback` is the contract; each of the others is one file."""

from raylit.callbacks.callback import Callback
from raylit.callbacks.checkpoint import Checkpoint
from raylit.callbacks.device_stats_monitor import DeviceStatsMonitor
from raylit.callbacks.early_stopping import EarlyStopping
from raylit.callbacks.lambda_callback import LambdaCallback
from raylit.callbacks.learning_rate_monitor import LearningRateMonitor
from raylit.callbacks.model_checkpoint import ModelCheckpoint
from raylit.callbacks.model_summary import ModelSummary, RichModelSummary
from raylit.callbacks.on_exception_checkpoint import OnExceptionCheckpoint
from raylit.callbacks.prediction_writer import BasePredictionWriter
from raylit.callbacks.progress_bar import ProgressBar, RichProgressBar, TQDMProgressBar
from raylit.callbacks.throughput_monitor import ThroughputMonitor
from raylit.callbacks.timer import Timer

# They watch metrics, so at the end of an epoch they come after the module, which may still log some.
MONITORS = (EarlyStopping, Checkpoint)

__all__ = [
    "MONITORS",
    "BasePredictionWriter",
    "Callback",
    "Checkpoint",
    "DeviceStatsMonitor",
    "EarlyStopping",
    "LambdaCallback",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
]
