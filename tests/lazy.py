"""Heavy packages, imported when a test first uses them.

Collecting the suite would import all of them, also for the run of a single test: Lightning with
torch's compiler, MLflow and Ray take more CPU time than all the rest together.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class LazyModule(ModuleType):
    """Stands for a module and its submodules; the first use of a name in one imports that one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_mock", "_pytest", "pytest")):
            # asked by inspect, mock and pytest of everything in a test module
            raise AttributeError(name)
        module = importlib.import_module(self.__name__)
        if hasattr(module, name):
            return getattr(module, name)
        return importlib.import_module(f"{self.__name__}.{name}")


class LazyLightning(LazyModule):
    """`lightning.pytorch` is a LazyModule too, so that scenarios can be handed it."""

    pytorch = LazyModule("lightning.pytorch")


lightning = LazyLightning("lightning")
dynamo_testing = LazyModule("torch._dynamo.testing")
matplotlib = LazyModule("matplotlib")
mlflow = LazyModule("mlflow")
optuna = LazyModule("optuna")
pandas = LazyModule("pandas")
ray = LazyModule("ray")
torchmetrics = LazyModule("torchmetrics")
event_accumulator = LazyModule("tensorboard.backend.event_processing.event_accumulator")
plugin_data_pb2 = LazyModule("tensorboard.plugins.hparams.plugin_data_pb2")
