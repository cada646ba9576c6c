"""LearningRateFinder.

Trains a little with a rising learning rate, and suggests the one at which the loss falls fastest.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from raylit.callbacks.finders.dry_run import dry_run
from raylit.core.callback import FIRST, Callback
from raylit.core.hparams import holders_of, set_value
from raylit.core.logger import as_loggers
from raylit.core.optimizer import LRSchedulerConfig
from raylit.engine.run import Run
from raylit.errors import ConfigError, NoAttributeError, SearchDone
from raylit.runtime.aliases import Batch, StateDict, StepOutput, UserOptimizer
from raylit.runtime.messages import info, warn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from raylit.core.datamodule import LightningDataModule
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

MODES = ("linear", "exponential")
USUAL_NAMES = ("lr", "learning_rate")
SMOOTHING = 0.98  # weight of the past in the running mean of the losses


class LRFinderResult:
    """The result of a search for a learning rate.

    Attributes:
        mode: how the learning rate rose.
        lr_min: the first learning rate.
        lr_max: the one it rose to, had it not ended before.
        num_training: number of steps that would have taken.
        results: `lr`, the learning rate of each step, and `loss`, the losses smoothed.

    Example:
        >>> found = Tuner(trainer).lr_find(model, loader)
        >>> found.suggestion()
        >>> found.plot(suggest=True).savefig("lr.png")
    """

    def __init__(self, mode: str, lr_min: float, lr_max: float, num_training: int) -> None:
        self.mode = mode
        self.lr_min = lr_min
        self.lr_max = lr_max
        self.num_training = num_training
        self.results: dict[str, list[float]] = {"lr": [], "loss": []}

    def suggestion(self, skip_begin: int = 10, skip_end: int = 1) -> float | None:
        """Return the learning rate at which the loss falls most steeply.

        None if there are fewer than two finite losses to judge by.

        Args:
            skip_begin: so many steps at the beginning are left out, where the loss falls for
                reasons of its own.
            skip_end: so many at the end, where it may rise already.
        """
        index = self._steepest(skip_begin, skip_end)
        return None if index is None else self.results["lr"][index]

    def _steepest(self, skip_begin: int = 10, skip_end: int = 1) -> int | None:
        steps = [
            step
            for step in range(skip_begin, len(self.results["loss"]) - skip_end)
            if math.isfinite(self.results["loss"][step])
        ]
        if len(steps) < 2:
            warn(
                f"A learning rate cannot be suggested: of {len(self.results['loss'])} steps,"
                f" {len(steps)} have a finite loss and are not skipped, and two are needed. Train"
                " for more steps (more data, max_epochs, num_training), or begin at a lower"
                " min_lr."
            )
            return None
        losses, lrs = (
            torch.tensor([self.results[key][step] for step in steps]) for key in ("loss", "lr")
        )
        return steps[int(torch.gradient(losses, spacing=[lrs])[0].argmin())]

    def plot(self, suggest: bool = False, show: bool = False, ax: Axes | None = None) -> Any:
        """Draw the loss over the learning rate; returns the matplotlib Figure.

        Args:
            suggest: mark the suggestion with a red point.
            show: open a window.
            ax: axes to draw on, instead of a new figure.
        """
        from matplotlib import pyplot as plt

        if ax is None:
            _, ax = plt.subplots()
        lrs = self.results["lr"]
        losses = self.results["loss"]
        ax.plot(lrs, losses)
        if self.mode == "exponential":
            ax.set_xscale("log")
        ax.set_xlabel("Learning rate")
        ax.set_ylabel("Loss")
        index = self._steepest() if suggest else None
        if index is not None:
            ax.plot(lrs[index], losses[index], markersize=10, marker="o", color="red")
        if show:
            plt.show()
        return ax.figure


class LearningRateFinder(Callback):
    """Searches for a learning rate before training.

    Some steps with a rising one, which leave no trace but the suggestion.

    Override `on_fit_start` to do nothing, and call `lr_find` in another hook, such as
    `on_train_epoch_start`, to search then.

    Args:
        min_lr: learning rate of the first step.
        max_lr: learning rate of the last.
        num_training_steps: number of steps; fewer if training ends before.
        mode: how it rises: `exponential`, by the same factor each time, or `linear`.
        early_stop_threshold: end the search when the smoothed loss is more than so many times the
            best. None: do not.
        update_attr: whether to set the model's attribute, and the optimizer, to the suggestion.
        attr_name: name of that attribute or hyperparameter, of the model or the datamodule.
            Default: `lr` or `learning_rate`.

    Attributes:
        optimal_lr: what was found; None before.

    Raises:
        ConfigError: `mode` is unknown; when it runs: there is no such attribute, or more than one
            optimizer.

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", 2017,
        https://arxiv.org/abs/1506.01186

    Example:
        >>> finder = LearningRateFinder(min_lr=1e-6)
        >>> Trainer(callbacks=[finder]).fit(model, loader)
        >>> finder.optimal_lr.suggestion()
    """

    SUPPORTED_MODES = MODES
    call_order = FIRST

    def __init__(
        self,
        min_lr: float = 1e-8,
        max_lr: float = 1,
        num_training_steps: int = 100,
        mode: str = "exponential",
        early_stop_threshold: float | None = 4.0,
        update_attr: bool = True,
        attr_name: str = "",
    ) -> None:
        if mode.lower() not in MODES:
            raise ConfigError(
                f"LearningRateFinder(mode={mode!r}) is not known. Use 'exponential' or 'linear'."
            )
        if min(min_lr, max_lr) < 0 or (min_lr * max_lr == 0 and mode.lower() == "exponential"):
            raise ConfigError(
                f"min_lr={min_lr!r}, max_lr={max_lr!r}: the learning rate goes from the one to the"
                " other, so give numbers above 0 (mode='linear' takes 0 too)."
            )
        if min_lr >= max_lr:
            warn(
                f"min_lr={min_lr!r} is not below max_lr={max_lr!r}: the learning rate does not rise"
                " in the search."
            )
        if num_training_steps < 1:
            raise ConfigError(
                f"{num_training_steps} steps of training: give at least 1; a suggestion needs 13."
            )
        self._min_lr = min_lr
        self._max_lr = max_lr
        self._num_training_steps = num_training_steps
        self._mode = mode.lower()
        self._early_stop_threshold = early_stop_threshold
        self._update_attr = update_attr
        self._attr_name = attr_name
        self._early_exit = False  # the Tuner wants the result and no training
        self.optimal_lr: LRFinderResult | None = None

    def on_fit_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.lr_find(trainer, pl_module)

    def lr_find(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Search now; the result is in `optimal_lr`."""
        run = trainer.run
        assert isinstance(run, Run), "called in a hook of a fit"
        if trainer.fast_dev_run:
            warn("LearningRateFinder does nothing in a fast dev run (fast_dev_run).")
            self.optimal_lr = None
        else:
            self.optimal_lr = self._search(run)
            if trainer.is_global_zero and len(self.optimal_lr.results["lr"]) > 1:
                for logger in as_loggers(trainer.loggers):
                    logger.log_lr_search(self.optimal_lr)
        if self._early_exit:
            raise SearchDone

    def _search(self, run: Run) -> LRFinderResult:
        name = (
            attribute_name(self._attr_name, run.module, run.datamodule) if self._update_attr else ""
        )
        if len(run.optimizers) != 1:
            raise ConfigError(
                f"configure_optimizers returned {len(run.optimizers)} optimizers, and"
                " LearningRateFinder searches for the learning rate of one. Return one for the"
                " search; or set the learning rates by hand, and leave the finder out."
            )
        optimizer = run.optimizers[0]
        found = LRFinderResult(self._mode, self._min_lr, self._max_lr, self._num_training_steps)
        info(
            f"Learning rate finder: up to {found.num_training} steps, from {found.lr_min:g} to"
            f" {found.lr_max:g}."
        )
        last_step = run.progress.steps + found.num_training
        watch = _Watch(run, self._early_stop_threshold)
        with dry_run(
            run, [watch], max_steps=last_step, limit_val_batches=found.num_training
        ) as perform:
            watch.rising = _RisingLR(optimizer, found)
            trial = perform([LRSchedulerConfig(watch.rising, interval="step")])
        if self._early_exit:  # no loop will ask for the data, and users look at it afterwards
            run.data.loaders.update(trial.data.loaders)
        found.results = run.world.broadcast_object({"lr": watch.lrs, "loss": watch.losses})
        if not run.module.automatic_optimization and len(set(watch.lrs)) < 2:
            warn(
                "The learning rate did not rise: in manual optimization training_step must step the"
                " scheduler, self.lr_schedulers().step()."
            )
        if len(watch.lrs) < found.num_training:
            info(
                f"The search ended after {len(watch.lrs)} steps: the loss diverged, or the limits"
                " of the fit were reached."
            )
        if self._update_attr:
            lr = found.suggestion()
            if lr is not None:
                set_value(holders_of(name, run.module, run.datamodule), name, lr)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                info(f"Learning rate set to {lr:g} ({name}).")
        return found


def attribute_name(
    given: str, module: LightningModule, datamodule: LightningDataModule | None
) -> str:
    """Return the name of the attribute or hyperparameter that is the learning rate.

    Raises:
        ConfigError: neither the module nor the datamodule has it.
    """
    for name in [given] if given else USUAL_NAMES:
        if holders_of(name, module, datamodule):
            return name
    kind = type(module).__name__
    wanted = given or " nor ".join(USUAL_NAMES)
    raise NoAttributeError(
        "When using the learning rate finder, either `model` or `model.hparams` should have one of"
        f" these fields: {(given,) if given else USUAL_NAMES}. "
        f"The learning rate that is found is to be set, but {kind} has no {wanted}, neither as"
        " attribute nor in hparams. Make it an argument that configure_optimizers uses; or name"
        " it, attr_name='...'; or leave it as it is, update_attr=False."
    )


class _RisingLR:
    """A scheduler that raises the learning rate of all groups from step to step."""

    def __init__(self, optimizer: UserOptimizer, found: LRFinderResult) -> None:
        self.optimizer = optimizer
        self.found = found
        self.steps = 0
        self.lr = found.lr_min
        self._set()

    def _set(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = self.lr

    def step(self, *args: object, **kwargs: object) -> None:
        """Go on to the learning rate of the next step."""
        self.steps += 1
        start = self.found.lr_min
        end = self.found.lr_max
        part = (self.steps + 1) / self.found.num_training
        self.lr = (
            start + part * (end - start)
            if self.found.mode == "linear"
            else start * (end / start) ** part
        )
        self._set()

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group."""
        return [self.lr] * len(self.optimizer.param_groups)

    def state_dict(self) -> StateDict:
        """Return nothing: a search is not resumed."""
        return {}

    def load_state_dict(self, state: StateDict) -> None:
        """Take nothing."""


class _Watch(Callback):
    """Notes learning rate and smoothed loss of each step; ends the search if the loss diverges."""

    rising: _RisingLR

    def __init__(self, run: Run, threshold: float | None) -> None:
        self.run = run
        self.threshold = threshold
        self.first = run.progress.steps
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.lr = self.mean = 0.0
        self.best: float | None = None

    def on_train_batch_start(
        self, trainer: RunningTrainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self.lr = self.rising.lr

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        self.lrs.append(self.lr)
        if not outputs or "loss" not in outputs:  # training_step has left this batch out
            self.losses.append(math.nan)
            return
        step = self.run.progress.steps - self.first
        self.mean = SMOOTHING * self.mean + (1 - SMOOTHING) * outputs["loss"].item()
        smoothed = self.mean / (1 - SMOOTHING ** (step + 1))
        if self.run.world.broadcast_object(self._diverges(smoothed)):
            trial = trainer.run
            assert isinstance(trial, Run)
            trainer.should_stop = True
            trial.agreement.stop_agreed = True
        if self.best is None or smoothed < self.best:
            self.best = smoothed
        self.losses.append(smoothed)

    def _diverges(self, smoothed: float) -> bool:
        if self.threshold is None or self.best is None:
            return False
        highest = (
            self.threshold * self.best
            if self.best >= 0
            else self.best + (self.threshold - 1) * abs(self.best)
        )
        return smoothed > highest
