"""Private parts of Lightning's Trainer that published packages read, as views of raylit's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raylit.trainer.view import TrainerView
from raylit.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    from raylit.trainer.trainer import Trainer


class ValidationData:
    """Where the validation data of a job comes from: `val_loop._data_source`."""

    def __init__(self, trainer: Any) -> None:
        self._trainer: Trainer = trainer

    def is_defined(self) -> bool:
        """Tell whether there is any."""
        run = self._trainer._run
        if run is None:
            return False
        owner: Any = run.job.module if run.datamodule is None else run.datamodule
        return "val" in run.job.data or is_overridden("val_dataloader", owner)


class ValidationLoop:
    """`trainer.fit_loop.epoch_loop.val_loop`."""

    def __init__(self, trainer: Any) -> None:
        self._data_source = ValidationData(trainer)


def install() -> None:
    """Give the Trainer the views."""
    TrainerView.val_loop = property(ValidationLoop)  # type: ignore[attr-defined]
