"""Loggers: files, TensorBoard and MLflow, all implementations of `core/logger.py`.

From outside, the classes are imported, from here.
Never here: anything that a step waits for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader

if TYPE_CHECKING:
    from raylit.core.logger import Logger
    from raylit.loggers.csv import CSVLogger
    from raylit.loggers.mlflow.logger import MLFlowLogger
    from raylit.loggers.tensorboard import TensorBoardLogger

__all__ = ["CSVLogger", "Logger", "MLFlowLogger", "TensorBoardLogger"]

# Loaded when asked for: what sends a journal, and `raylit runs`, do without torch.
__getattr__ = attribute_loader(
    __name__,
    {
        "CSVLogger": "raylit.loggers.csv",
        "Logger": "raylit.core.logger",
        "MLFlowLogger": "raylit.loggers.mlflow.logger",
        "TensorBoardLogger": "raylit.loggers.tensorboard",
    },
)
