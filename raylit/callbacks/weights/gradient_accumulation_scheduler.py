"""GradientAccumulationScheduler: how many batches make one optimizer step, by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.core.callback import Callback
from raylit.core.hooks import is_overridden
from raylit.core.module import LightningModule
from raylit.errors import ConfigError, WrongStateError
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from raylit.core.trainer import RunningTrainer


class GradientAccumulationScheduler(Callback):
    """Changes with the epochs how many batches' gradients add up to one optimizer step.

    An epoch's last batch always steps.

    Args:
        scheduling: from the number of an epoch, counted from 0, to the number of batches that holds
            from there on; 1 before the first.

    Raises:
        TypeError: `scheduling` is empty.
        ConfigError: an epoch or a number of batches is no such integer; or, before training starts,
            the Trainer accumulates too, or the module steps its optimizers itself.

    Example:
        >>> trainer = Trainer(
        ...     max_epochs=9, callbacks=[GradientAccumulationScheduler({0: 8, 4: 4, 8: 1})]
        ... )
    """

    def __init__(self, scheduling: dict[int, int]) -> None:
        if not scheduling:
            raise TypeError(
                "Empty dict cannot be interpreted correct: "
                "GradientAccumulationScheduler(scheduling={}) says nothing. Give epochs and batches"
                " per step: {4: 2}."
            )
        if any(not isinstance(epoch, int) or epoch < 0 for epoch in scheduling):
            raise ConfigError(
                "Epoch should be an int greater than or equal to 0: "
                "The keys of scheduling are epochs, integers from 0 on; given are"
                f" {list(scheduling)}. Write {{4: 2}}."
            )
        if any(not isinstance(number, int) or number < 1 for number in scheduling.values()):
            raise ConfigError(
                "Accumulation factor should be an int greater than 0: "
                "The values of scheduling are batches per step, integers from 1 on; given are"
                f" {list(scheduling.values())}. Write {{4: 2}}."
            )
        self.scheduling = {0: 1, **scheduling}
        self.epochs = sorted(self.scheduling)
        self._set = 1  # what this callback set last: no argument of the Trainer

    def going_to_accumulate_grad_batches(self) -> bool:
        """Tell whether any step takes more than one batch."""
        return any(number > 1 for number in self.scheduling.values())

    def get_accumulate_grad_batches(self, epoch: int) -> int:
        """Return how many batches make a step in an epoch."""
        return self.scheduling[max(start for start in self.epochs if start <= epoch)]

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise WrongStateError(
                "Automatic gradient accumulation and the `GradientAccumulationScheduler` is not"
                " supported for manual optimization. "
                "GradientAccumulationScheduler has no effect in manual optimization, where"
                " training_step does it. Remove the callback and step the optimizer every n"
                " batches."
            )
        if trainer.accumulate_grad_batches not in (1, self._set):
            raise ConfigError(
                "You have set `accumulate_grad_batches` and are using the"
                " `GradientAccumulationScheduler`"
                " callback. "
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) and"
                " GradientAccumulationScheduler contradict each other. Remove one of the two."
            )
        overridden = [
            name
            for name in ("optimizer_step", "optimizer_zero_grad")
            if is_overridden(name, pl_module, LightningModule)
        ]
        if overridden and self.going_to_accumulate_grad_batches():
            warn(
                f"While gradients accumulate, {' and '.join(overridden)} is called for each"
                " optimizer step, not for each batch."
            )

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer)  # a fit that goes on within an epoch does not start it

    def on_train_epoch_start(self, trainer: RunningTrainer, *_: object) -> None:
        self._set = trainer.accumulate_grad_batches = self.get_accumulate_grad_batches(
            trainer.current_epoch
        )
