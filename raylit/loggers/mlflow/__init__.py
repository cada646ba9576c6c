"""Runs in MLflow: `logger.py` is the Logger, the others bring values and files to the store.

`journal.py` keeps all that is logged, `delivery.py` sends it, in a process of its own
(`sender.py`). From outside, MLFlowLogger is imported, and by the command line `store.py`; no other
folder imports mlflow. Never here: anything that makes the training thread wait for a network or a
database.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader

if TYPE_CHECKING:
    from raylit.loggers.mlflow.logger import MLFlowLogger

__all__ = ["MLFlowLogger"]

__getattr__ = attribute_loader(__name__, {"MLFlowLogger": "raylit.loggers.mlflow.logger"})
