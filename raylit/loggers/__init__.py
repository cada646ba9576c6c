"""Loggers: files, TensorBoard, MLflow and Ray's own metrics, which all implement `core/logger.py`.

From outside, the classes are imported, from here.
Never here: anything that a step waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader

if TYPE_CHECKING:
    from raylit.core.logger import Logger
    from raylit.loggers.csv import CSVLogger
    from raylit.loggers.hosted.comet import CometLogger
    from raylit.loggers.hosted.neptune import NeptuneLogger
    from raylit.loggers.hosted.wandb import WandbLogger
    from raylit.loggers.mlflow.logger import MLFlowLogger
    from raylit.loggers.ray_metrics import RayMetricsLogger
    from raylit.loggers.tensorboard import TensorBoardLogger

__all__ = [
    "CSVLogger",
    "CometLogger",
    "Logger",
    "MLFlowLogger",
    "NeptuneLogger",
    "RayMetricsLogger",
    "TensorBoardLogger",
    "WandbLogger",
]

# Loaded when asked for: what sends a journal, and `raylit runs`, do without torch.
if not TYPE_CHECKING:  # which finds a name that is not there
    __getattr__ = attribute_loader(
        __name__,
        {
            "CSVLogger": "raylit.loggers.csv",
            "CometLogger": "raylit.loggers.hosted.comet",
            "Logger": "raylit.core.logger",
            "MLFlowLogger": "raylit.loggers.mlflow.logger",
            "NeptuneLogger": "raylit.loggers.hosted.neptune",
            "RayMetricsLogger": "raylit.loggers.ray_metrics",
            "TensorBoardLogger": "raylit.loggers.tensorboard",
            "WandbLogger": "raylit.loggers.hosted.wandb",
        },
    )
