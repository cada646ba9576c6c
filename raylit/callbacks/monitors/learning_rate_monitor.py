"""LearningRateMonitor.

Brings learning rates, and if wanted momentum and weight decay, to the loggers.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

import torch

from raylit.core.callback import Callback
from raylit.core.logger import as_loggers
from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch, ParamGroup
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class LearningRateMonitor(Callback):
    """Logs the learning rate of every parameter group.

    It does so with the step values and at the start of each epoch.

    The names are `lr-Adam`, `lr-Adam-1` for the second optimizer of a kind, or the `name` in the
    lr_scheduler dict; then, if there are several groups, `/pg1`, `/pg2`, ... or `/` and the `name`
    in the group.

    Args:
        logging_interval: `step` or `epoch`: when to log all of them. None: those with a scheduler
            when that is stepped, others at both times.
        log_momentum: whether to log the momentum too (for Adam and its kin: beta1), with
            `-momentum` appended to the name.
        log_weight_decay: whether to log the weight decay too, with `-weight_decay` appended to the
            name.

    Attributes:
        lrs: name to all values logged so far.
        last_momentum_values: name to the momentum logged last.
        last_weight_decay_values: name to the weight decay logged last.

    Raises:
        ConfigError: `logging_interval` is not known; while training, if there is no logger or two
            groups of an optimizer have one name.

    Example:
        >>> trainer = Trainer(callbacks=[LearningRateMonitor(logging_interval="step")])
    """

    def __init__(
        self,
        logging_interval: Literal["step", "epoch"] | None = None,
        log_momentum: bool = False,
        log_weight_decay: bool = False,
    ) -> None:
        if logging_interval not in (None, "step", "epoch"):
            raise ConfigError(
                f"LearningRateMonitor(logging_interval={logging_interval!r}) is not known. Use"
                " 'step', 'epoch' or None."
            )
        self.logging_interval = logging_interval
        self.log_momentum = log_momentum
        self.log_weight_decay = log_weight_decay
        self.lrs: dict[str, list[float]] = {}
        self.last_momentum_values: dict[str, float] = {}
        self.last_weight_decay_values: dict[str, float] = {}

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if not trainer.loggers:
            raise ConfigError(
                "Cannot use `LearningRateMonitor` callback with `Trainer` that has no logger: "
                "LearningRateMonitor has no logger to write to. Give the Trainer one, such as"
                " logger=CSVLogger('logs'), or leave it out."
            )
        groups = named_groups(trainer)
        self.lrs = {name: [] for name, *_ in groups}
        if self.log_momentum and any(
            "momentum" not in optimizer.defaults and "betas" not in optimizer.defaults
            for _, _, optimizer, _ in groups
        ):
            warn(
                "LearningRateMonitor(log_momentum=True): an optimizer has no momentum, so 0 is"
                " logged for it.",
                RuntimeWarning,
            )

    def on_train_batch_start(
        self, trainer: RunningTrainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self.logging_interval != "epoch" and trainer.should_log_step:
            self._log_values(trainer, "step")

    def on_train_epoch_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self.logging_interval != "step":
            self._log_values(trainer, "epoch")

    def _log_values(self, trainer: RunningTrainer, interval: str) -> None:
        values: dict[str, float] = {}
        for name, group, optimizer, stepped_every in named_groups(trainer):
            if self.logging_interval is None and stepped_every not in (None, interval):
                continue
            self._lrs_of(name).append(float(group["lr"]))
            values[name] = self.lrs[name][-1]
            if self.log_momentum:
                momentum = (
                    group["betas"][0] if "betas" in optimizer.defaults else group.get("momentum", 0)
                )
                values[f"{name}-momentum"] = self.last_momentum_values[f"{name}-momentum"] = float(
                    momentum
                )
            if self.log_weight_decay:
                decay = float(group.get("weight_decay", 0))
                values[f"{name}-weight_decay"] = self.last_weight_decay_values[
                    f"{name}-weight_decay"
                ] = decay
        if not values:
            return
        trainer.callback_metrics.update(
            {name: torch.tensor(value) for name, value in values.items()}
        )
        if trainer.is_global_zero:
            for logger in as_loggers(trainer.loggers):
                logger.log_metrics(metrics=values, step=trainer.progress.log_steps)

    def _lrs_of(self, name: str) -> list[float]:
        """Return the list of a name.

        When a first group gets company in the middle of training, it goes on as `/pg1`.
        """
        if name not in self.lrs:
            alone = name.removesuffix("/pg1")
            self.lrs[name] = self.lrs.pop(alone) if alone in self.lrs else []
        return self.lrs[name]


def named_groups(
    trainer: RunningTrainer,
) -> list[tuple[str, ParamGroup, Optimizer, str | None]]:
    """Return every parameter group with its name, its optimizer and its scheduler's interval.

    The interval is None where there is no scheduler.

    Optimizers with a scheduler come first, in the order of the schedulers.
    """
    found: list[tuple[str, ParamGroup, Optimizer, str | None]] = []
    num_of_kind: Counter[type[Optimizer]] = Counter()
    with_schedulers = [
        (config.scheduler.optimizer, config.name, config.interval)
        for config in trainer.lr_scheduler_configs
    ]
    others = [
        optimizer
        for optimizer in trainer.optimizers
        if all(optimizer is not one for one, *_ in with_schedulers)
    ]
    for optimizer, given_name, interval in [
        *with_schedulers,
        *((optimizer, None, None) for optimizer in others),
    ]:
        name = given_name
        if name is None:
            num_of_kind[type(optimizer)] += 1
            name = f"lr-{type(optimizer).__name__}"
        if num_of_kind[type(optimizer)] > 1:
            name += f"-{num_of_kind[type(optimizer)] - 1}"
        groups = optimizer.param_groups
        own_names = [
            group.get("name", f"pg{number}") for number, group in enumerate(groups, start=1)
        ]
        for own in set(own_names):
            if own_names.count(own) > 1:
                raise ConfigError(
                    f"Two parameter groups of the optimizer behind {name} are named {own!r}. Give"
                    " them different names."
                )
        for group, own in zip(groups, own_names, strict=True):
            found.append(
                (
                    f"{name}/{own}" if len(groups) > 1 or "name" in group else name,
                    group,
                    optimizer,
                    interval,
                )
            )
    return found
