"""Optimizers and scheduler configurations, from the return value of `configure_optimizers`.

Also the optimizer that users step by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR, ReduceLROnPlateau

from raylit.core.hooks import is_overridden, takes_argument
from raylit.core.module import LightningModule
from raylit.core.optimizer import LightningOptimizer, LRSchedulerConfig
from raylit.core.progress import (
    EPOCH_PLATEAU,
    EPOCH_SCHEDULERS,
    PLATEAU,
    SCHEDULERS,
    STEPPED,
    STEPPING,
    Action,
)
from raylit.errors import ConfigError, WrongStateError, did_you_mean
from raylit.parallel import no_sync
from raylit.runtime.aliases import Arguments, StateDict, UserOptimizer, UserScheduler
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from raylit.engine.run import Run


class NoOptimizer(torch.optim.Optimizer):
    """Stands in when `configure_optimizers` returned None: it steps nothing."""

    def __init__(self) -> None:
        # torch refuses an empty list; `add_param_group` leaves this one out again
        super().__init__([torch.zeros(1)], {})

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Do nothing."""

    def step(self, closure: Callable[[], object] | None = None) -> None:  # type: ignore[override]
        """Evaluate the closure, if there is one."""
        if closure is not None:
            closure()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing."""

    def state_dict(self) -> StateDict:
        """Return nothing."""
        return {}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take nothing."""


class CountedOptimizer(LightningOptimizer):
    """A LightningOptimizer whose steps are those of a run."""

    def __init__(self, optimizer: UserOptimizer, run: Run) -> None:
        self._run = run
        super().__init__(optimizer)

    def step(self, closure: Callable[[], object] | None = None, **kwargs: object) -> object:
        """See `LightningOptimizer.step`."""
        if closure is not None and not callable(closure):
            raise ConfigError(
                "When `optimizer.step(closure)` is called, the closure should be callable."
                f" optimizer.step(closure={closure!r}): the closure must be callable."
            )
        run = self._run
        progress = run.progress
        scaler = run.precision.scaler
        steps = progress.steps
        progress.at = STEPPING
        if scaler is not None:
            # By itself, since a GradScaler takes no closure
            result = closure() if closure is not None else None
            run.prepare_step(self._optimizer)
            scaler.step(self._optimizer, **kwargs)
            scaler.update()
        else:

            @torch.enable_grad()  # some optimizers call it within their own no_grad
            def prepared() -> object:
                loss = closure() if closure is not None else None
                run.prepare_step(self._optimizer)
                return loss

            result = self._optimizer.step(closure=prepared, **kwargs)
        # An exception leaves STEPPING there: by it a save knows that weights may be half changed
        progress.at = STEPPED
        # Set and not added: the hooks of `count_steps` have counted this step as well
        if not run.module.automatic_optimization:
            progress.steps = steps + 1  # also where a scaler has left the step out
        return result

    @contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """See `LightningOptimizer.toggle_model`."""
        module = self._run.module
        with (
            no_sync(self._run.step_module if not sync_grad else None),
            module.toggled_optimizer(self._optimizer),
        ):
            yield


def zero_grad_of(optimizer: UserOptimizer) -> Callable[[], None]:
    """Return the function that clears the gradients of an optimizer.

    It is the optimizer's own `zero_grad`, or if that is torch's, a function that does the same
    work.

    Around that work torch opens an entry for its profiler, at every step, which costs more than all
    the rest.
    """
    if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad or "zero_grad" in vars(
        optimizer
    ):
        own: Callable[[], None] = optimizer.zero_grad
        return own

    def zero_grad() -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    return zero_grad


def wants_closure(optimizer: UserOptimizer) -> bool:
    """Tell whether `step` of the optimizer must be handed the closure.

    Torch's own, but LBFGS, never need it; of others one cannot know.
    """
    if isinstance(optimizer, (torch.optim.LBFGS, NoOptimizer)):
        return True
    return not type(optimizer).__module__.startswith("torch.optim")


def use(run: Run, optimizers: list[object], *, counts: bool = True) -> None:
    """Let the loop step these optimizers.

    Args:
        run: the run.
        optimizers: of its module; none in an evaluation that follows no fit.
        counts: whether steps by hand are still to be counted.
    """
    run.optimizers = optimizers
    if counts:
        run.stop_counting()
        run.counting = count_steps(run, optimizers)
    run.wrapped_optimizers = [CountedOptimizer(optimizer, run) for optimizer in optimizers]
    if not optimizers:
        return
    run.calls = replace(
        run.calls,
        zero_grad=zero_grad_of(optimizers[0]),
        needs_closure=is_overridden("optimizer_step", run.module, LightningModule)
        or wants_closure(optimizers[0]),
    )


def count_steps(run: Run, optimizers: list[object]) -> list[RemovableHandle]:
    """Count the steps of optimizers that `training_step` steps by hand, whether wrapped or not.

    Returns handles that end it.
    """
    progress = run.progress

    def begins(*args: object) -> None:
        progress.at = STEPPING

    def has_stepped(*args: object) -> None:
        progress.steps += 1
        progress.at = STEPPED

    by_hand = [] if run.module.automatic_optimization else optimizers
    return [
        handle
        for optimizer in by_hand
        if isinstance(optimizer, torch.optim.Optimizer)
        for handle in (
            optimizer.register_step_pre_hook(begins),
            optimizer.register_step_post_hook(has_stepped),
        )
    ]


def step_optimizer(run: Run, optimizer: UserOptimizer, loss: torch.Tensor | None) -> None:
    """Step with the gradients there are, outside of a batch."""
    scaler = run.precision.scaler
    # A GradScaler refuses a step for which no loss was scaled
    if scaler is not None and loss is None:
        return
    run.prepare_step(optimizer)
    run.progress.at = STEPPING
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()
    run.progress.steps += 1


# the action: which schedulers it steps, and whether these go by a metric
STEPPED_AT: dict[Action, tuple[str, bool]] = {
    SCHEDULERS: ("step", False),
    EPOCH_SCHEDULERS: ("epoch", False),
    PLATEAU: ("step", True),
    EPOCH_PLATEAU: ("epoch", True),
}


def step_schedulers(run: Run, action: Action) -> None:
    """Step the learning-rate schedulers of one action that are due."""
    progress = run.progress
    progress.at = action
    if not run.module.automatic_optimization:
        return
    interval, plateau = STEPPED_AT[action]
    # As in Lightning `frequency` counts batches, also where several make one step
    count = _batch_of_schedules(run) if interval == "step" else progress.epoch + 1
    if count is None:
        return
    for number, config in enumerate(run.schedulers):
        if (
            config.reduce_on_plateau != plateau
            or config.interval != interval
            or count % config.frequency != 0
            or number < progress.updated
        ):
            continue
        # Before the call: a checkpoint that is saved in it goes on behind this scheduler
        progress.updated = number + 1
        value = None
        if plateau:
            monitor = str(config.monitor)
            value = run.metrics.watched(monitor)
            # Also here, since without a sanity check nothing was known of what validation logs
            if run.validations is not None and not run.metrics.is_of_training(monitor):
                run.validations.refuse_scheduler(monitor)
            if value is None:
                _say_missing(run, config)
                continue
            # Validation may be rarer than this scheduler's steps, which strict=False is for:
            # https://github.com/Lightning-AI/pytorch-lightning/issues/5943
            if not config.strict and not run.metrics.has_news(str(number), monitor):
                continue
        run.call(run.module, "lr_scheduler_step", config.scheduler, value)
        progress.scheduler_steps += 1
    progress.updated = 0


def _say_missing(run: Run, config: LRSchedulerConfig) -> None:
    """Warn that the value a scheduler watches was not logged.

    Raises:
        ConfigError: the scheduler is strict about it.
    """
    text = (
        f"ReduceLROnPlateau conditioned on metric {config.monitor} which is not available. "
        f"ReduceLROnPlateau watches {config.monitor!r}, which was not logged. Logged so"
        f" far: {', '.join(run.metrics.callback) or 'nothing'}."
    )
    # Where a fit goes on from a file without values, it may be logged yet
    if config.strict and run.resume.has_values:
        raise ConfigError(
            text + ' Log it, change "monitor", or set "strict": False in the lr_scheduler dict.'
        )
    warn(text + " The learning rate is left as it is.", RuntimeWarning)


def _batch_of_schedules(run: Run) -> int | None:
    """Return the batch that schedules have come to; None if it is the one of the step before."""
    plan = run.job.rescale_plan
    batch = run.progress.batch
    if plan is None or plan.size == plan.most:
        return batch
    number = run.trainer.num_training_batches
    return plan.schedule_count(
        run.data.loaders["train"], batch, number, run.limits.accumulate_grad_batches
    )


def configure(module: LightningModule) -> tuple[list[object], list[LRSchedulerConfig]]:
    """Call `configure_optimizers` and check its return value.

    Raises:
        ConfigError: the return value has none of the possible shapes.
    """
    returned = module.configure_optimizers()
    if returned is None:
        warn("configure_optimizers returned None: this fit runs without an optimizer.")
        returned = NoOptimizer()
    optimizers, schedulers, monitor = _take_apart(returned)
    if module.automatic_optimization and len(optimizers) > 1:
        raise WrongStateError(
            "Training with multiple optimizers is only supported with manual optimization. "
            f"configure_optimizers returned {len(optimizers)} optimizers, which only manual"
            " optimization can use: set self.automatic_optimization = False in __init__ and call"
            " manual_backward and step of self.optimizers() in training_step."
        )
    if takes_argument(module.training_step, "optimizer_idx"):
        raise ConfigError(
            "training_step has an argument optimizer_idx. Several optimizers are stepped by hand:"
            " set self.automatic_optimization = False."
        )
    configs = [
        _scheduler_config(scheduler, monitor, module.automatic_optimization)
        for scheduler in schedulers
    ]
    for config in configs:
        _check_scheduler(config, optimizers, module)
    return optimizers, configs


def _is_optimizer(value: object) -> bool:
    # As in Lightning: optimizers of other packages need not derive from torch's class
    return isinstance(value, torch.optim.Optimizer) or all(
        hasattr(value, name) for name in ("param_groups", "state_dict", "load_state_dict", "step")
    )


def _take_apart(returned: object) -> tuple[list[object], list[object], str | None]:
    """Return (optimizers, schedulers, monitor) of any of the possible return values."""
    if _is_optimizer(returned):
        return [_unwrap(returned)], [], None
    if isinstance(returned, dict):
        _check_dict(returned)
        return (
            [_unwrap(returned["optimizer"])],
            [returned["lr_scheduler"]] if "lr_scheduler" in returned else [],
            returned.get("monitor"),
        )
    if isinstance(returned, (list, tuple)):
        if (
            len(returned) == 2
            and isinstance(returned[0], list)
            and all(_is_optimizer(one) for one in returned[0])
        ):
            schedulers = returned[1] if isinstance(returned[1], list) else [returned[1]]
            return [_unwrap(one) for one in returned[0]], schedulers, None
        if returned and all(isinstance(one, dict) for one in returned):
            for one in returned:
                _check_dict(one)
            schedulers = [one["lr_scheduler"] for one in returned if "lr_scheduler" in one]
            return [_unwrap(one["optimizer"]) for one in returned], schedulers, None
        if all(_is_optimizer(one) for one in returned):
            return [_unwrap(one) for one in returned], [], None
    raise ConfigError(
        "Unknown configuration for model optimizers. "
        f"configure_optimizers returned {returned!r}. Return an optimizer, a list of them,"
        ' ([optimizers], [schedulers]), or {"optimizer": ..., "lr_scheduler": ..., "monitor":'
        " ...}."
    )


def _unwrap(optimizer: UserOptimizer) -> object:
    return optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer


def _check_dict(value: dict[str, object]) -> None:
    known = ("optimizer", "lr_scheduler", "monitor")
    if "optimizer" not in value:
        raise ConfigError(
            'The dict that configure_optimizers returned has no key "optimizer"; it has:'
            f" {', '.join(map(repr, value))}."
        )
    for key in value:
        if key not in known:
            warn(
                f"configure_optimizers returned the unknown key {key!r}; it is"
                f" ignored.{did_you_mean(str(key), known)}",
                RuntimeWarning,
            )


def _scheduler_config(
    scheduler: UserScheduler | Arguments, monitor: str | None, automatic: bool
) -> LRSchedulerConfig:
    given = dict(scheduler) if isinstance(scheduler, dict) else {"scheduler": scheduler}
    known = [field.name for field in fields(LRSchedulerConfig)]
    for key in [key for key in given if key not in known]:
        warn(
            f"The lr_scheduler dict has the unknown key {key!r}; it is"
            f" ignored.{did_you_mean(key, known)}",
            RuntimeWarning,
        )
        del given[key]
    if "scheduler" not in given:
        raise ConfigError(
            'The lr scheduler dict must have the key "scheduler". '
            'The lr_scheduler dict must have the key "scheduler" that holds the scheduler.'
        )
    if given.get("interval", "epoch") not in ("step", "epoch"):
        raise ConfigError(
            'The "interval" key in lr scheduler dict must be "step" or "epoch". '
            f'The lr_scheduler dict has "interval": {given["interval"]!r}; use "step" or "epoch".'
        )
    if not automatic:
        ignored = [key for key in ("reduce_on_plateau", "monitor", "strict") if key in given]
        if ignored:
            warn(
                f"The lr_scheduler dict has {ignored}, which manual optimization ignores: call"
                " self.lr_schedulers().step(...) yourself.",
                RuntimeWarning,
            )
        return LRSchedulerConfig(
            **{key: value for key, value in given.items() if key not in ignored}
        )
    is_plateau = isinstance(given["scheduler"], ReduceLROnPlateau)
    config = LRSchedulerConfig(**{"reduce_on_plateau": is_plateau, **given})
    if config.monitor is None and not isinstance(scheduler, dict):
        config.monitor = monitor
    if config.reduce_on_plateau and config.monitor is None:
        raise ConfigError(
            "`configure_optimizers` must include a monitor when a `ReduceLROnPlateau` scheduler is"
            ' used. ReduceLROnPlateau needs to know which metric to watch. Return {"optimizer":'
            ' optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val_loss"}} from'
            " configure_optimizers."
        )
    if isinstance(config.scheduler, OneCycleLR) and config.interval == "epoch":
        warn(
            'OneCycleLR is stepped once per epoch. Did you mean "interval": "step"?', RuntimeWarning
        )
    return config


def _check_scheduler(
    config: LRSchedulerConfig, optimizers: list[object], module: LightningModule
) -> None:
    scheduler = config.scheduler
    name = type(scheduler).__name__
    if not (hasattr(scheduler, "state_dict") and hasattr(scheduler, "load_state_dict")):
        raise TypeError(
            f"The lr scheduler {name} has no state_dict and load_state_dict, so it could not be"
            " stored in checkpoints. Add them."
        )
    is_torch = isinstance(scheduler, (LRScheduler, ReduceLROnPlateau))
    if (
        not is_torch
        and module.automatic_optimization
        and not is_overridden("lr_scheduler_step", module, LightningModule)
    ):
        raise ConfigError(
            f"The lr scheduler {name} is none of torch's. Override lr_scheduler_step(self,"
            " scheduler, metric) to say how it is stepped."
        )
    if getattr(scheduler, "optimizer", None) is not None and all(
        scheduler.optimizer is not one for one in optimizers
    ):
        raise ConfigError(
            f"The lr scheduler {name} belongs to an optimizer that configure_optimizers did not"
            " return. Return that optimizer too."
        )
