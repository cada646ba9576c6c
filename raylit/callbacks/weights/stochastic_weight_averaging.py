"""StochasticWeightAveraging.

The last epochs at a learning rate of their own, and in the end the mean of their weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import SWALR, AveragedModel

from raylit.callbacks.checkpoints.scheduled_checkpoint import ScheduledCheckpoint
from raylit.checkpoint import to_plain
from raylit.core.callback import Callback
from raylit.core.optimizer import LRSchedulerConfig
from raylit.engine.state import scheduler_state
from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch, StateDict, StepOutput
from raylit.runtime.messages import info, warn

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class StochasticWeightAveraging(Callback):
    """Averages the weights with which the last epochs begin, at a learning rate of their own.

    The module has the mean when training has ended.

    At the start of these epochs torch's SWALR takes the place of the learning-rate scheduler. A
    module with batch norm goes through the training data once more after the last epoch, without
    learning, so that its running statistics are those of the mean.

    The mean is in the newest checkpoint: that of a ModelCheckpoint without `monitor`, or `last`
    with `save_last=True`. It has no value of a metric, except after that extra epoch, so that
    checkpoints kept for their value may all hold weights of before. The newest also has, in this
    callback's state, the weights that training left: a fit of more epochs goes on from those.

    Args:
        swa_lrs: learning rate of the averaged epochs, or one for each parameter group.
        swa_epoch_start: from which epoch on to average, counted from 1; or, from 0.0 to 1.0, after
            which part of `max_epochs`.
        annealing_epochs: over how many epochs the learning rate goes there.
        annealing_strategy: "cos" or "linear".
        avg_fn: from (mean, weight, number of weights in the mean), all tensors, to the new mean.
            None: all weigh the same.
        device: where the mean is kept. None: where the module is.

    Raises:
        ConfigError: an argument is none of these; or, before training starts, there are several
            optimizers or schedulers, or part of an unlimited `max_epochs` was asked for, or the
            training data of a module with batch norm has no length.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
        2018, https://arxiv.org/abs/1803.05407

    Example:
        >>> trainer = Trainer(
        ...     max_epochs=20,
        ...     callbacks=[StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=0.75)],
        ... )
    """

    def __init__(
        self,
        swa_lrs: float | list[float],
        swa_epoch_start: int | float = 0.8,
        annealing_epochs: int = 10,
        annealing_strategy: Literal["cos", "linear"] = "cos",
        avg_fn: Callable[[Tensor, Tensor, Tensor | int], Tensor] | None = None,
        device: torch.device | str | None = torch.device("cpu"),  # noqa: B008  (a constant)
    ) -> None:
        given = swa_lrs if isinstance(swa_lrs, list) else [swa_lrs]
        if not given or not all(isinstance(rate, float) and rate > 0 for rate in given):
            raise ConfigError(
                f"swa_lrs={swa_lrs!r} is no learning rate. Give a float above 0, such as 0.05, or"
                " one for each parameter group."
            )
        if swa_epoch_start < (1 if isinstance(swa_epoch_start, int) else 0) or (
            isinstance(swa_epoch_start, float) and swa_epoch_start > 1
        ):
            raise ConfigError(
                f"swa_epoch_start={swa_epoch_start} is no epoch. Give an int from 1 on, or a part"
                " of all epochs from 0.0 to 1.0."
            )
        if (
            annealing_strategy not in ("cos", "linear")
            or not isinstance(annealing_epochs, int)
            or annealing_epochs < 0
        ):
            raise ConfigError(
                f"annealing_strategy={annealing_strategy!r}, annealing_epochs={annealing_epochs!r}:"
                " use 'cos' or 'linear', and an int from 0 on."
            )
        if avg_fn is not None and not callable(avg_fn):
            raise ConfigError(
                f"avg_fn={avg_fn!r} is no function. Leave it out, or give one of (mean, weight,"
                " number averaged)."
            )
        if device is not None and not isinstance(device, (torch.device, str)):
            raise ConfigError(
                f"device={device!r} is no device. Give a torch.device, its name, or None for the"
                " module's."
            )
        self._swa_epoch_start = swa_epoch_start
        self._swa_lrs = swa_lrs
        self._annealing_epochs = annealing_epochs
        self._annealing_strategy: Literal["cos", "linear"] = annealing_strategy
        self._avg_fn = avg_fn or self.avg_fn
        self._device = device
        # First and last epoch to average, counted from 0; the last is infinite without max_epochs
        self._start = 0
        self._end = float("inf")
        self._has_extra_epoch = False
        self._latest_update_epoch = -1
        self._average_model: AveragedModel | None = None
        self._swa_scheduler: SWALR | None = None
        self._before_mean: StateDict | None = None  # what the module had, once it has the mean
        self._momenta: dict[_BatchNorm, float | None] = {}
        self._accumulate_grad_batches = 1
        self._state: StateDict | None = (
            None  # while no fit runs: of the last one, or of the checkpoint to go on from
        )

    @staticmethod
    def avg_fn(
        averaged_model_parameter: Tensor, model_parameter: Tensor, num_averaged: Tensor | int
    ) -> Tensor:
        """Return the mean of `num_averaged` weights and one more."""
        return averaged_model_parameter + (model_parameter - averaged_model_parameter) / (
            num_averaged + 1
        )

    # ---- before training ----

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        trainer.strategy.refuse_if_sharded("StochasticWeightAveraging copies the whole model")
        self._state = None
        self._average_model = None
        self._swa_scheduler = None
        self._before_mean = None
        self._momenta = {}
        self._latest_update_epoch = -1
        unlimited = trainer.max_epochs in (None, -1)
        if unlimited and isinstance(self._swa_epoch_start, float):
            raise ConfigError(
                f"swa_epoch_start={self._swa_epoch_start} is a part of max_epochs, which is"
                " unlimited. Give the number of an epoch, such as 10."
            )

    def on_fit_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if len(trainer.optimizers) != 1 or len(trainer.lr_scheduler_configs) > 1:
            raise ConfigError(
                "StochasticWeightAveraging works with one optimizer and at most one scheduler;"
                f" configure_optimizers returned {len(trainer.optimizers)} and"
                f" {len(trainer.lr_scheduler_configs)}. Use WeightAveraging, which leaves them"
                " alone."
            )
        num_groups = len(trainer.optimizers[0].param_groups)
        if isinstance(self._swa_lrs, list) and len(self._swa_lrs) != num_groups:
            raise ConfigError(
                f"swa_lrs has {len(self._swa_lrs)} learning rates, but the optimizer {num_groups}"
                " parameter groups. Give as many."
            )
        max_epochs = -1 if trainer.max_epochs is None else trainer.max_epochs
        first = (
            int(max_epochs * self._swa_epoch_start)
            if isinstance(self._swa_epoch_start, float)
            else self._swa_epoch_start
        )
        self._start = max(first - 1, 0)
        self._end = float("inf") if max_epochs == -1 else max_epochs - 1
        if self._start > self._end:
            warn(
                f"swa_epoch_start={self._swa_epoch_start} is after the last of {max_epochs} epochs:"
                " no weights are averaged."
            )
        has_batch_norm = any(isinstance(module, _BatchNorm) for module in pl_module.modules())
        self._has_extra_epoch = has_batch_norm and max_epochs != -1 and self._start <= self._end
        if self._has_extra_epoch:
            trainer.max_epochs = max_epochs + 1
        self._average_model = AveragedModel(
            pl_module,
            self._device or pl_module.device,  # type: ignore[arg-type]
            avg_fn=self._avg_fn,
        )
        if self._state is not None:
            self._average_model.module.load_state_dict(self._state["average_model_state"])
            self._average_model.n_averaged.fill_(self._state["n_averaged"])
            self._latest_update_epoch = self._state["latest_update_epoch"]
            self._before_mean = self._state.get("weights_before_mean")
            # The scheduler in the checkpoint is SWALR: no other is to take its state
            if self._state["scheduler_state"] is not None:
                trainer.lr_scheduler_configs.clear()
                assert trainer.run is not None
                trainer.run.replaces_schedulers = True

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._has_extra_epoch and trainer.num_training_batches == float("inf"):
            raise ConfigError(
                "StochasticWeightAveraging goes through the training data once more for batch norm,"
                " and has to know its length. Set Trainer(limit_train_batches=...), or give the"
                " dataset a __len__."
            )
        if self._state is not None and self._state["scheduler_state"] is not None:
            self._take_over_schedule(trainer)
        if trainer.progress.in_epoch and trainer.current_epoch == self._end + 1:
            self._begin_extra_epoch(trainer, pl_module)  # this fit goes on within it
        elif self._before_mean is not None and trainer.current_epoch <= self._end:
            pl_module.load_state_dict(self._before_mean)
            self._before_mean = None

    # ---- while training ----

    def on_train_epoch_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if self._start <= epoch <= self._end:
            if self._swa_scheduler is None:
                if epoch > self._start:
                    warn(
                        f"Averaging begins in epoch {epoch}, not {self._start}: this fit goes on"
                        " from a checkpoint without averages."
                    )
                self._take_over_schedule(trainer)
            if epoch > self._latest_update_epoch:
                self._average().update_parameters(pl_module)
                self._latest_update_epoch = epoch
        elif self._has_extra_epoch and epoch == self._end + 1:
            self._transfer(pl_module)
            for module in pl_module.modules():
                if isinstance(module, _BatchNorm):
                    module.reset_running_stats()
            self._begin_extra_epoch(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if self._momenta and trainer.is_last_batch:  # of the extra epoch, which takes no step
            self._tell_savers(trainer)

    def on_train_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        # There was no extra epoch, or a stop came before it
        if self._end == float("inf") or trainer.current_epoch - 1 == self._end:
            self._transfer(pl_module)
            self._tell_savers(trainer)
        self._leave_as_found(trainer)

    def on_exception(
        self, trainer: RunningTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._leave_as_found(trainer)

    def teardown(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._leave_as_found(trainer)
            self._state = to_plain(self.state_dict())
            self._average_model = None
            self._swa_scheduler = None
            self._before_mean = None

    # ---- state ----

    def state_dict(self) -> StateDict:
        average = self._average_model
        scheduler = self._swa_scheduler
        if average is None and self._state is not None:
            return self._state
        state: StateDict = {
            "n_averaged": 0 if average is None else int(average.n_averaged),
            "latest_update_epoch": self._latest_update_epoch,
            "scheduler_state": None if scheduler is None else scheduler_state(scheduler),
            "average_model_state": None if average is None else average.module.state_dict(),
        }
        if self._before_mean is not None:  # Lightning's has no such key
            state["weights_before_mean"] = self._before_mean
        return state

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._state = state_dict

    # ---- parts ----

    def _average(self) -> AveragedModel:
        assert self._average_model is not None, "the average is made in on_fit_start"
        return self._average_model

    def _take_over_schedule(self, trainer: RunningTrainer) -> None:
        """Put SWALR in the place of the learning-rate scheduler."""
        optimizer = trainer.optimizers[0]
        configs = trainer.lr_scheduler_configs
        rates = (
            self._swa_lrs
            if isinstance(self._swa_lrs, list)
            else [self._swa_lrs] * len(optimizer.param_groups)
        )
        for rate, group in zip(rates, optimizer.param_groups, strict=True):
            group["initial_lr"] = rate
        last_epoch = -1
        if self._annealing_strategy == "cos" and trainer.max_epochs is not None:
            last_epoch = trainer.max_epochs
        scheduler = SWALR(
            optimizer,
            rates,  # type: ignore[arg-type]
            self._annealing_epochs,
            self._annealing_strategy,
            last_epoch,
        )
        if self._state is not None and self._state["scheduler_state"] is not None:
            scheduler.load_state_dict(self._state["scheduler_state"])
        self._swa_scheduler = scheduler
        if configs:
            before = configs[0]
            if before.interval != "epoch" or before.frequency != 1:
                warn(
                    f"Averaging is by epoch; {type(before.scheduler).__name__}, stepped otherwise,"
                    " ends now."
                )
            info(f"Swapping scheduler `{type(before.scheduler).__name__}` for `SWALR`")
            configs[0] = LRSchedulerConfig(scheduler)
        else:
            configs.append(LRSchedulerConfig(scheduler))

    def _transfer(self, pl_module: LightningModule) -> None:
        """Give the mean to the module; its buffers stay."""
        average = self._average()
        if int(average.n_averaged) > 0:
            if self._before_mean is None:
                self._before_mean = {
                    name: value.detach().clone() if isinstance(value, Tensor) else value
                    for name, value in pl_module.state_dict().items()
                }
            for averaged, parameter in zip(
                average.module.parameters(), pl_module.parameters(), strict=True
            ):
                parameter.detach().copy_(averaged)

    def _tell_savers(self, trainer: RunningTrainer) -> None:
        """Let checkpoints of the mean be saved, although the last step was saved before it."""
        if int(self._average().n_averaged) > 0:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ScheduledCheckpoint):
                    callback.weights_changed()

    def _begin_extra_epoch(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Begin an epoch without learning, whose running statistics are means over all batches."""
        for module in pl_module.modules():
            if isinstance(module, _BatchNorm):
                self._momenta[module] = module.momentum
                module.momentum = None
        self._accumulate_grad_batches = trainer.accumulate_grad_batches
        assert trainer.run is not None
        trainer.run.skips_backward = True
        trainer.accumulate_grad_batches = int(trainer.num_training_batches)

    def _leave_as_found(self, trainer: RunningTrainer) -> None:
        """Undo the changes for the extra epoch."""
        if self._momenta:
            for module, momentum in self._momenta.items():
                module.momentum = momentum
            self._momenta = {}
            assert trainer.run is not None
            trainer.run.skips_backward = False
            trainer.accumulate_grad_batches = self._accumulate_grad_batches
        if self._has_extra_epoch and trainer.max_epochs is not None:
            trainer.max_epochs -= 1
            self._has_extra_epoch = False
