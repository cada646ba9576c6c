"""Lightning's place for its plugins; the docstring of each tells its effect in raylit."""

from raylit.checkpoint.io import AsyncCheckpointIO, CheckpointIO, TorchCheckpointIO
from raylit.parallel.plugins import (
    ClusterEnvironment,
    DoublePrecision,
    FSDPPrecision,
    HalfPrecision,
    LayerSync,
    MixedPrecision,
    TorchSyncBatchNorm,
)
from raylit.parallel.plugins import PrecisionPlugin as Precision
from raylit.runtime.lazy import attribute_loader

__all__ = [
    "AsyncCheckpointIO",
    "CheckpointIO",
    "ClusterEnvironment",
    "DoublePrecision",
    "FSDPPrecision",
    "HalfPrecision",
    "LayerSync",
    "MixedPrecision",
    "Precision",
    "TorchCheckpointIO",
    "TorchSyncBatchNorm",
]

__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
