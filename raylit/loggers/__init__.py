"""Where metrics and hyperparameters go: `Logger` is the contract, the others are its implementations."""

from raylit.loggers.base import Logger
from raylit.loggers.csv import CSVLogger
from raylit.loggers.mlflow import MLFlowLogger
from raylit.loggers.tensorboard import TensorBoardLogger

__all__ = ["CSVLogger", "Logger", "MLFlowLogger", "TensorBoardLogger"]
