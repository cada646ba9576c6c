"""Runs in MLflow: `logger.py` is the Logger, the others bring values and files to the store.

From outside, only MLFlowLogger is imported; no other folder imports mlflow.
Never here: anything that makes the training thread wait for a network or a database.
"""

from raylit.loggers.mlflow.logger import MLFlowLogger

__all__ = ["MLFlowLogger"]
