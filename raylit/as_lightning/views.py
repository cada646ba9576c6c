"""Private parts of Lightning's Trainer that published packages read, as views of raylit's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raylit.engine.lightning_progress import loops_of
from raylit.trainer.view import TrainerView
from raylit.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    from raylit.runtime.aliases import StateDict
    from raylit.trainer.trainer import Trainer


class ValidationData:
    """Where the validation data of a job comes from: `val_loop._data_source`."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer: Trainer = trainer

    def is_defined(self) -> bool:
        """Tell whether there is any."""
        run = self._trainer._run
        if run is None:
            return False
        owner = run.job.module if run.datamodule is None else run.datamodule
        return "val" in run.job.data or is_overridden("val_dataloader", owner)


class ValidationLoop:
    """`trainer.fit_loop.epoch_loop.val_loop`."""

    def __init__(self, trainer: Trainer) -> None:
        self._data_source = ValidationData(trainer)


class Counters:
    """Lightning's counters, nested as it nests them: `epoch_progress.current.completed`."""

    def __init__(self, values: Mapping[str, object]) -> None:
        for name, value in values.items():
            setattr(self, name, Counters(value) if isinstance(value, Mapping) else value)

    def __repr__(self) -> str:
        return f"Counters({vars(self)})"


class EvaluationLoop:
    """`trainer.validate_loop`, `trainer.test_loop`."""

    def __init__(self, trainer: Trainer, stage: str) -> None:
        self._trainer: Trainer = trainer
        self._stage = stage

    @property
    def max_batches(self) -> list[float]:
        """Batches of each loader."""
        found: list[float] = getattr(self._trainer, f"num_{self._stage}_batches")
        return found


def _loops_of(trainer: Trainer) -> StateDict:
    module = trainer.lightning_module
    automatic = module is None or module.automatic_optimization
    loops: StateDict = loops_of(
        trainer.progress, automatic=automatic, accumulate=trainer.accumulate_grad_batches
    )["fit_loop"]
    return loops


def _val_check_batch(trainer: Trainer) -> float | None:
    run = trainer.run
    return None if run is None else run.data.val_check_batch


def install() -> None:
    """Give the Trainer the views."""
    for name, view in {
        "val_loop": ValidationLoop,
        "validate_loop": lambda trainer: EvaluationLoop(trainer, "val"),
        "test_loop": lambda trainer: EvaluationLoop(trainer, "test"),
        "val_check_batch": _val_check_batch,
        "epoch_progress": lambda trainer: Counters(_loops_of(trainer)["epoch_progress"]),
        "batch_progress": lambda trainer: Counters(_loops_of(trainer)["epoch_loop.batch_progress"]),
    }.items():
        setattr(TrainerView, name, property(view))
