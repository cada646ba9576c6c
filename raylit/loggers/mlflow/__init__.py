"""Runs in MLflow: `logger.py` is the Logger, the others bring values and files to the store.

`journal.py` keeps all that is logged, `delivery.py` sends it, in a process of its own
(`sender.py`). From outside, users import MLFlowLogger; the command line, sweeps and `raylit.export`
import `store.py`, `runs.py`, `models.py`, `model.py` and `source.py`. No other folder imports
mlflow. Never here: anything that makes a step wait for a network or a database. The thread that
trains does wait before and after training: for the run to be made, and in `keep_model`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader

if TYPE_CHECKING:
    from raylit.loggers.mlflow.logger import MLFlowLogger

__all__ = ["MLFlowLogger"]

__getattr__ = attribute_loader(__name__, {"MLFlowLogger": "raylit.loggers.mlflow.logger"})
