"""Loggers: files, TensorBoard and MLflow, all implementations of `core/logger.py`.

From outside, the classes are imported, from here.
Never here: anything that a step waits for.
"""

from raylit.core.logger import Logger
from raylit.loggers.csv import CSVLogger
from raylit.loggers.mlflow.logger import MLFlowLogger
from raylit.loggers.tensorboard import TensorBoardLogger
from raylit.runtime.lazy import attribute_loader

__all__ = ["CSVLogger", "Logger", "MLFlowLogger", "TensorBoardLogger"]

__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
