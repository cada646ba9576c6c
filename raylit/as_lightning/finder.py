"""Has Python find raylit where code asks for Lightning."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from raylit.checkpoint.format import LIGHTNING_FORMAT
from raylit.errors import ConfigError
from raylit.runtime import beforehand
from raylit.runtime.messages import info

NAMES = "raylit.as_lightning.names"
# Lightning's packages, longest first, and where their modules are looked for, one after the other.
PLACES = {
    "lightning.pytorch": (f"{NAMES}.pytorch", "raylit"),
    "lightning.fabric": (f"{NAMES}.fabric", "raylit.fabric"),
    "lightning": (NAMES,),
    "pytorch_lightning": (f"{NAMES}.pytorch", "raylit"),
    "lightning_fabric": (f"{NAMES}.fabric", "raylit.fabric"),
}
# Modules of Lightning's that raylit has under another name.
SAME = {
    "lightning.fabric.accelerators": f"{NAMES}.pytorch.accelerators",
    "lightning.fabric.plugins.environments": "raylit.plugins.environments",
    "lightning.fabric.plugins.io": f"{NAMES}.pytorch.plugins.io",
    "lightning.fabric.plugins.precision": f"{NAMES}.pytorch.plugins.precision",
    "lightning.fabric.utilities.seed": "raylit.utilities.seed",
    "lightning.fabric.utilities.throughput": "raylit.utilities.throughput",
    "lightning.fabric.utilities.warnings": "raylit.utilities.warnings",
    "lightning.fabric.utilities.apply_func": "raylit.utilities",
    "lightning.fabric.utilities.enums": "raylit.utilities.enums",
    "lightning.fabric.utilities.optimizer": "raylit.utilities",
    "lightning.fabric.loggers.logger": "raylit.loggers.logger",
    "lightning.fabric.loggers": "raylit.loggers",
    "lightning.pytorch.accelerators.accelerator": "raylit.accelerators",
    "lightning.pytorch.accelerators.cpu": "raylit.accelerators",
    "lightning.pytorch.accelerators.cuda": "raylit.accelerators",
    "lightning.pytorch.accelerators.mps": "raylit.accelerators",
    "lightning.pytorch.callbacks.spike": "raylit.callbacks.spike_detection",
    "lightning.fabric.accelerators.accelerator": "raylit.accelerators",
    "lightning.fabric.accelerators.cpu": "raylit.accelerators",
    "lightning.fabric.accelerators.cuda": "raylit.accelerators",
    "lightning.fabric.accelerators.mps": "raylit.accelerators",
    "lightning.fabric.plugins.environments.cluster_environment": "raylit.plugins.environments",
    "lightning.fabric.plugins.environments.kubeflow": "raylit.plugins.environments",
    "lightning.fabric.plugins.environments.lightning": "raylit.plugins.environments",
    "lightning.fabric.plugins.environments.lsf": "raylit.plugins.environments",
    "lightning.fabric.plugins.environments.mpi": "raylit.plugins.environments",
    "lightning.fabric.plugins.environments.slurm": "raylit.plugins.environments",
    "lightning.fabric.plugins.environments.torchelastic": "raylit.plugins.environments",
    "lightning.fabric.plugins.environments.xla": "raylit.plugins.environments",
    "lightning.fabric.plugins.io.checkpoint_io": "raylit.plugins.io",
    "lightning.fabric.plugins.io.torch_io": "raylit.plugins.io",
    "lightning.fabric.plugins.precision.amp": "raylit.plugins.precision",
    "lightning.fabric.plugins.precision.double": "raylit.plugins.precision",
    "lightning.fabric.plugins.precision.half": "raylit.plugins.precision",
    "lightning.fabric.plugins.precision.precision": "raylit.plugins.precision",
    "lightning.fabric.strategies.ddp": "raylit.strategies",
    "lightning.fabric.strategies.fsdp": "raylit.strategies",
    "lightning.fabric.strategies.model_parallel": f"{NAMES}.pytorch.strategies",
    "lightning.fabric.strategies.parallel": f"{NAMES}.pytorch.strategies",
    "lightning.fabric.strategies.single_device": f"{NAMES}.pytorch.strategies",
    "lightning.fabric.strategies.strategy": "raylit.strategies",
    "lightning.fabric.loggers.csv_logs": f"{NAMES}.pytorch.loggers.csv_logs",
    "lightning.fabric.loggers.tensorboard": "raylit.loggers",
    "lightning.fabric.utilities.spike": "raylit.callbacks.spike_detection",
    "lightning.pytorch.core.mixins.hparams_mixin": "raylit.core.mixins",
    "lightning.pytorch.loggers.comet": "raylit.loggers.hosted.comet",
    "lightning.pytorch.loggers.neptune": "raylit.loggers.hosted.neptune",
    "lightning.pytorch.loggers.wandb": "raylit.loggers.hosted.wandb",
    "lightning.pytorch.loops.fit_loop": f"{NAMES}.pytorch.loops",
    "lightning.pytorch.loops.training_epoch_loop": f"{NAMES}.pytorch.loops",
    "lightning.pytorch.loops.evaluation_loop": f"{NAMES}.pytorch.loops",
    "lightning.pytorch.loops.prediction_loop": f"{NAMES}.pytorch.loops",
    "lightning.pytorch.loops.loop": f"{NAMES}.pytorch.loops",
    "lightning.pytorch.plugins.io.async_plugin": "raylit.plugins.io",
    "lightning.pytorch.plugins.io.checkpoint_plugin": "raylit.plugins.io",
    "lightning.pytorch.plugins.io.torch_plugin": "raylit.plugins.io",
    "lightning.pytorch.plugins.io.wrapper": "raylit.plugins.io",
    "lightning.pytorch.plugins.precision.amp": "raylit.plugins.precision",
    "lightning.pytorch.plugins.precision.double": "raylit.plugins.precision",
    "lightning.pytorch.plugins.precision.fsdp": "raylit.plugins.precision",
    "lightning.pytorch.plugins.precision.half": "raylit.plugins.precision",
    "lightning.pytorch.plugins.precision.precision": "raylit.plugins.precision",
    "lightning.pytorch.profilers.profiler": "raylit.profilers",
    "lightning.pytorch.strategies.strategy": "raylit.strategies",
    "lightning.pytorch.strategies.parallel": f"{NAMES}.pytorch.strategies",
    "lightning.pytorch.strategies.single_device": f"{NAMES}.pytorch.strategies",
    "lightning.pytorch.strategies.model_parallel": f"{NAMES}.pytorch.strategies",
    "lightning.pytorch.tuner.batch_size_scaling": "raylit.callbacks.finders.batch_size_finder",
    "lightning.pytorch.loops.optimization.automatic": f"{NAMES}.pytorch.loops",
    "lightning.pytorch.loops.optimization.manual": f"{NAMES}.pytorch.loops",
    "lightning.pytorch.utilities.model_summary.model_summary": (
        f"{NAMES}.pytorch.utilities.model_summary"
    ),
}
# raylit's own, which are no part of Lightning though they stand beside its packages.
OWN = ("as_lightning", "check", "checkpoint", "engine", "launch", "metrics", "runtime", "tune")


def install() -> None:
    """Let `import lightning` and its like find raylit, here and in Ray workers of this process.

    Raises:
        ConfigError: the real one was imported before.
    """
    if any(isinstance(finder, LightningFinder) for finder in sys.meta_path):
        return
    real = sorted(name for name in sys.modules if name in PLACES)
    if real:
        raise ConfigError(
            f"raylit.as_lightning came too late: {', '.join(real)} was imported before, and its"
            " classes are in use. Import raylit.as_lightning first, above everything else, or start"
            " the script with `python -m raylit.as_lightning script.py`."
        )
    sys.meta_path.insert(0, LightningFinder())
    if beforehand.add("raylit.as_lightning"):
        info(f"raylit stands in for lightning {LIGHTNING_FORMAT} (raylit.as_lightning).")


class LightningFinder(MetaPathFinder, Loader):
    """Finds Lightning's modules among those of raylit.

    A module is loaded once and has both names, so that a class is one class whatever it was asked
    for by.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of one of Lightning's modules, None of any other.

        Raises:
            ModuleNotFoundError: it is Lightning's, and raylit has none like it.
        """
        package = next((one for one in PLACES if f"{fullname}.".startswith(f"{one}.")), None)
        if package is None:
            return None
        rest = fullname.removeprefix(package).removeprefix(".")
        kind = "fabric" if "fabric" in package else "pytorch"
        found = SAME.get(f"lightning.{kind}.{rest}") or real_name(rest, PLACES[package])
        if found is None:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}: raylit, which stands in for Lightning, has none"
                " like it (raylit.as_lightning).",
                name=fullname,
            )
        return ModuleSpec(fullname, self, origin=found)

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python to make a module, which `exec_module` replaces."""

    def exec_module(self, module: ModuleType) -> None:
        """Put raylit's module where Lightning's was to be."""
        spec = module.__spec__
        assert spec is not None and spec.origin is not None
        found = importlib.import_module(spec.origin)
        if not hasattr(found, "__path__"):
            found.__path__ = []  # Lightning's is a package, whose modules are asked for below it
        sys.modules[spec.name] = found


def real_name(name: str, places: Sequence[str]) -> str | None:
    """Return the name of the first module called `name` below one of the places."""
    if name.partition(".")[0] in OWN:
        return None
    for place in places:
        path = f"{place}.{name}" if name else place
        try:
            if find_spec(path) is not None:
                return path
        except ModuleNotFoundError:  # what it would be a part of is no package there
            continue
    return None
