"""WeightAveraging and EMAWeightAveraging.

Validate, save and end with an average of the weights that training went through.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_swa_avg_fn

from raylit.core.callback import Callback
from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch, CheckpointDict, StateDict, StepOutput
from raylit.runtime.messages import info, warn

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class Average(AveragedModel):
    """torch's AveragedModel, with its count on the CPU.

    Reading it does not make the host wait for the device.
    """

    def update_parameters(self, model: nn.Module) -> None:
        """Take the weights of `model` into the average.

        The first weights are copied; tensors that have no mean are always copied.
        """
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for mine, other in zip(
            tensors_of(self.module, buffers=self.use_buffers),
            tensors_of(model, buffers=self.use_buffers),
            strict=True,
        ):
            mine = mine.detach()
            other = other.detach().to(mine.device)
            if self.n_averaged == 0 or not has_mean(mine):
                mine.copy_(other)
            else:
                averaged.append(mine)
                current.append(other)
        if self.multi_avg_fn is not None:
            # As torch does: its functions for lists are fast on one device and with one type only
            groups: dict[object, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
            for mine, other in zip(averaged, current, strict=True):
                groups[mine.device, mine.dtype][0].append(mine)
                groups[mine.device, mine.dtype][1].append(other)
            for group in groups.values():
                self.multi_avg_fn(*group, self.n_averaged)
        else:
            average = self.avg_fn or get_swa_avg_fn()
            for mine, other in zip(averaged, current, strict=True):
                mine.copy_(average(mine, other, self.n_averaged))
        if not self.use_buffers:
            for buffer, other in zip(self.module.buffers(), model.buffers(), strict=True):
                buffer.copy_(other)
        self.n_averaged += 1


def has_mean(tensor: Tensor) -> bool:
    """Tell whether two of a tensor have a mean; masks, sparse and quantized buffers have none."""
    return tensor.dtype != torch.bool and tensor.layout == torch.strided and not tensor.is_quantized


def tensors_of(module: nn.Module, *, buffers: bool) -> Iterator[Tensor]:
    """Yield a module's parameters and, if wanted, its buffers."""
    return chain(module.parameters(), module.buffers() if buffers else ())


class WeightAveraging(Callback):
    """Keeps an average of the weights.

    Validation runs with it, checkpoints hold it, and the module has it when training has ended.

    By default the average is taken after every optimizer step, all steps weighing the same (SWA).
    Until the first average is taken, validation and checkpoints have the weights themselves. A
    checkpoint holds the average as `state_dict`, and beside it, under `current_model_state` and
    `averaging_state`, the state that training needs to go on; one saved with
    `save_weights_only=True` holds the weights themselves and no average.

    Args:
        device: where the average is kept; by default where the module is. "cpu" saves memory of the
            device; each update then waits for it.
        use_buffers: whether buffers are averaged too. False: they are copied, and statistics of
            batch norm belong to other weights.
        kwargs: further arguments of `torch.optim.swa_utils.AveragedModel`: `avg_fn` or
            `multi_avg_fn`.

    Raises:
        ConfigError: `AveragedModel` has no such argument, or both functions are given.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization",
        2018, https://arxiv.org/abs/1803.05407

    Example:
        >>> class LastEpochs(WeightAveraging):
        ...     def should_update(self, step_idx=None, epoch_idx=None):
        ...         return epoch_idx is not None and epoch_idx >= 15
        >>> trainer = Trainer(max_epochs=20, callbacks=[LastEpochs()])
    """

    averages_weights = True

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        **kwargs: Any,
    ) -> None:
        unknown = set(kwargs) - {"avg_fn", "multi_avg_fn"}
        if unknown or len({name for name in kwargs if kwargs[name] is not None}) == 2:
            raise ConfigError(
                f"{type(self).__name__} takes avg_fn or multi_avg_fn, as"
                f" torch.optim.swa_utils.AveragedModel does; given are: {', '.join(kwargs)}. Leave"
                " out all but one of the two."
            )
        self._device = torch.device(device) if isinstance(device, str) else device
        self._use_buffers = use_buffers
        self._kwargs = kwargs
        self._average_model: Average | None = None
        self._loaded: StateDict | None = (
            None  # state of the average in the checkpoint that a fit goes on from
        )
        self._swapped = (
            False  # whether the module has the average, and the average the module's weights
        )
        self._latest_update_step = 0
        self._latest_update_epoch = -1

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Tell whether the average is to be taken now: after an optimizer step or an epoch.

        To override.

        Args:
            step_idx: number of the step just taken, from 0; None at the end of an epoch.
            epoch_idx: number of the epoch that ends, from 0; None after a step.
        """
        return step_idx is not None

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.refuse_if_sharded("WeightAveraging copies the whole model")
        self._average_model = None
        self._loaded = None
        self._swapped = False
        if stage == "fit":  # of an earlier fit of another Trainer nothing is to remain
            self._latest_update_step = min(self._latest_update_step, trainer.global_step)
            self._latest_update_epoch = min(self._latest_update_epoch, trainer.current_epoch - 1)

    def on_fit_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Make the average, now that the module is whole and on its device."""
        average = Average(pl_module, use_buffers=self._use_buffers, **self._kwargs)
        # Not the average as a whole, whose count is to stay on the CPU
        average.module.to(pl_module.device if self._device is None else self._device)
        if self._loaded is not None:
            average.load_state_dict(self._loaded)
        self._average_model = average
        self._loaded = None

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        steps = trainer.global_step
        # A batch within an accumulation takes no step
        if steps > self._latest_update_step and self.should_update(step_idx=steps - 1):
            self._average().update_parameters(pl_module)
            self._latest_update_step = steps

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        # Once the checkpoint is restored: this Trainer may have been in a later epoch before
        self._latest_update_epoch = min(self._latest_update_epoch, trainer.current_epoch - 1)

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if epoch > self._latest_update_epoch and self.should_update(epoch_idx=epoch):
            self._average().update_parameters(pl_module)
            self._latest_update_epoch = epoch

    def on_validation_epoch_start(
        self, trainer: RunningTrainer, pl_module: LightningModule
    ) -> None:
        if self._has_average:
            self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._swapped:
            self._swap(pl_module)

    def on_exception(
        self, trainer: RunningTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Else a module whose validation has failed would be left with the average
        if self._swapped:
            self._swap(pl_module)

    def on_train_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._has_average:
            average = self._average().module
            for current, averaged in zip(
                tensors_of(pl_module, buffers=True), tensors_of(average, buffers=True), strict=True
            ):
                current.data.copy_(averaged.data)

    def state_dict(self) -> StateDict:
        return {"latest_update_step": self._latest_update_step}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self._latest_update_step = state_dict["latest_update_step"]

    def on_save_checkpoint(
        self, trainer: RunningTrainer, pl_module: LightningModule, checkpoint: CheckpointDict
    ) -> None:
        if self._average_model is None:
            info(
                "This checkpoint is saved outside of a fit: it holds the module's weights, without"
                " the state of WeightAveraging."
            )
            return
        state = self._average_model.state_dict()
        kept = {
            name.removeprefix("module."): value
            for name, value in state.items()
            if name.startswith("module.")
        }
        current = checkpoint["state_dict"]
        # It is saved within a validation, for which the module has the average
        if self._swapped:
            current, kept = kept, current
        checkpoint["state_dict"] = kept if self._has_average else current
        checkpoint["current_model_state"] = current
        checkpoint["averaging_state"] = {
            name: value for name, value in state.items() if not name.startswith("module.")
        }

    def on_load_checkpoint(
        self, trainer: RunningTrainer, pl_module: LightningModule, checkpoint: CheckpointDict
    ) -> None:
        if trainer.state.fn != "fit":
            return
        if "current_model_state" not in checkpoint or "averaging_state" not in checkpoint:
            warn(
                "The checkpoint was saved without WeightAveraging: the average begins anew, from"
                " the checkpoint's weights."
            )
            return
        averaged = {f"module.{name}": value for name, value in checkpoint["state_dict"].items()}
        self._loaded = averaged | checkpoint["averaging_state"]
        # The weights loaded so far are the average: `state_dict` holds it, for all but training
        pl_module.load_state_dict(
            checkpoint["current_model_state"], strict=pl_module.strict_loading
        )

    @property
    def _has_average(self) -> bool:
        """Whether anything was averaged yet."""
        return self._average_model is not None and int(self._average_model.n_averaged) > 0

    def _average(self) -> Average:
        assert self._average_model is not None, "the average is made in on_fit_start"
        return self._average_model

    def _swap(self, pl_module: LightningModule) -> None:
        """Exchange the weights of the module and of the average."""
        self._swapped = not self._swapped
        average = self._average().module
        for current, averaged in zip(
            tensors_of(pl_module, buffers=True), tensors_of(average, buffers=True), strict=True
        ):
            # In place, since optimizers and DDP hold the tensors; and one by one, to save memory
            kept = averaged.data.clone()
            averaged.data.copy_(current.data)
            current.data.copy_(kept)

    def __getstate__(self) -> StateDict:
        # what travels is small: after a fit the module has the average
        return {**super().__getstate__(), "_average_model": None, "_loaded": None}


class EMAWeightAveraging(WeightAveraging):
    """Keeps an exponential moving average of the weights.

    At each update it is `decay` times the average before and `1 - decay` times the weights.

    Args:
        device: as for WeightAveraging.
        use_buffers: as for WeightAveraging.
        decay: share of the average that stays at each update.
        update_every_n_steps: updates after steps 0, n, 2n and so on; 0 for none.
        update_starting_at_step: the first step that may be followed by an update; None is from the
            start.
        update_starting_at_epoch: from this epoch on there is an update after each; None is never.
        kwargs: as for WeightAveraging.

    Raises:
        ConfigError: as for WeightAveraging.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992,
        https://doi.org/10.1137/0330046

    Example:
        >>> trainer = Trainer(
        ...     max_epochs=20,
        ...     callbacks=[EMAWeightAveraging(decay=0.99, update_starting_at_step=100)],
        ... )
    """

    def __init__(
        self,
        device: torch.device | str | int | None = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        if "avg_fn" in kwargs:
            raise ConfigError(
                "EMAWeightAveraging brings its own avg_fn. Leave it out, or give it to"
                " WeightAveraging."
            )
        if not 0.0 <= decay <= 1.0:
            raise ConfigError(
                f"EMAWeightAveraging(decay={decay}) is not between 0 and 1. A usual value is 0.999."
            )
        super().__init__(
            device=device, use_buffers=use_buffers, **kwargs, avg_fn=partial(_moving_average, decay)
        )
        self._decay = decay  # for the config of the fit, which reads arguments by their names
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.update_starting_at_epoch = update_starting_at_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        if step_idx is not None:
            starts = self.update_starting_at_step
            every = self.update_every_n_steps
            return (starts is None or step_idx >= starts) and every > 0 and step_idx % every == 0
        return (
            epoch_idx is not None
            and self.update_starting_at_epoch is not None
            and epoch_idx >= self.update_starting_at_epoch
        )


def _moving_average(
    decay: float, averaged: Tensor, current: Tensor, num_averaged: Tensor
) -> Tensor:
    """Return torch's moving average.

    Unlike the function that torch makes, this one can be pickled.
    """
    average: Tensor = get_ema_avg_fn(decay)(averaged, current, num_averaged)
    return average
