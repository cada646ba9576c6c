"""EarlyStopping: ends training when a metric no longer gets better."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raylit.core.callback import Callback
from raylit.errors import ConfigError
from raylit.runtime.aliases import StateDict
from raylit.runtime.kinds import check_kinds
from raylit.runtime.messages import log, warn

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

SIGN = {"min": "<", "max": ">"}


class EarlyStoppingReason(Enum):
    """Why training was stopped."""

    NOT_STOPPED = 0
    STOPPING_THRESHOLD = 1
    DIVERGENCE_THRESHOLD = 2
    PATIENCE_EXHAUSTED = 3
    NON_FINITE_METRIC = 4


def is_better(value: Tensor | float, other: Tensor | float, mode: str) -> bool:
    """Tell whether `value` is strictly better than `other`; NaN never is."""
    return bool((operator.lt if mode == "min" else operator.gt)(value, other))


def judge(
    current: Tensor | float,
    best: Tensor | float,
    wait_count: int,
    *,
    mode: str = "min",
    min_delta: float = 0.0,
    patience: int = 3,
    check_finite: bool = True,
    stopping_threshold: float | None = None,
    divergence_threshold: float | None = None,
) -> tuple[EarlyStoppingReason, bool]:
    """Decide on one new value, from numbers alone.

    Args:
        current: the new value.
        best: the best before it.
        wait_count: how many values in a row were no improvement before it.
        mode: `min` if lower is better, `max` if higher is.
        min_delta: the improvement must be more than this.
        patience: how many values in a row may be no improvement.
        check_finite: whether NaN and infinity stop.
        stopping_threshold: a value better than this stops.
        divergence_threshold: a value worse than this stops.

    Returns:
        Why to stop, `NOT_STOPPED` if not; and whether the value is an improvement.

    Example:
        >>> judge(0.5, 0.4, wait_count=2, patience=3)
        (<EarlyStoppingReason.PATIENCE_EXHAUSTED: 3>, False)
    """
    if check_finite and not math.isfinite(current):
        return EarlyStoppingReason.NON_FINITE_METRIC, False
    if stopping_threshold is not None and is_better(current, stopping_threshold, mode):
        return EarlyStoppingReason.STOPPING_THRESHOLD, False
    if divergence_threshold is not None and is_better(-current, -divergence_threshold, mode):
        return EarlyStoppingReason.DIVERGENCE_THRESHOLD, False
    if is_better(current + min_delta if mode == "min" else current - min_delta, best, mode):
        return EarlyStoppingReason.NOT_STOPPED, True
    if wait_count + 1 >= patience:
        return EarlyStoppingReason.PATIENCE_EXHAUSTED, False
    return EarlyStoppingReason.NOT_STOPPED, False


class EarlyStopping(Callback):
    """Stops training when a metric no longer gets better, has become good enough, or went wrong.

    Every check counts, not every epoch: with `check_val_every_n_epoch=10` and `patience=3` training
    goes on for at least 40 epochs. If any rank says stop, all stop.

    Args:
        monitor: the metric, logged with `self.log`.
        min_delta: an improvement must be more than this.
        patience: checks in a row without an improvement after which training stops.
        verbose: whether to say what was decided.
        mode: `min` if lower is better, `max` if higher is.
        strict: whether it is an error if the metric was not logged.
        check_finite: whether to stop when the metric is NaN or infinite.
        stopping_threshold: stop once the metric is better than this.
        divergence_threshold: stop once the metric is worse than this.
        check_on_train_epoch_end: True checks after each epoch of training, False after each
            validation. None: after the epoch, if validation runs once in each.
        log_rank_zero_only: whether only rank 0 says what was decided.

    Attributes:
        best_score: the best value so far.
        wait_count: checks in a row without an improvement.
        stopped_epoch: number of the epoch in which training was stopped; 0 if it was not.
        stopping_reason: why, as an EarlyStoppingReason.
        stopping_reason_message: why, in words; None if this rank had no reason.

    Raises:
        ConfigError: `mode` is neither `min` nor `max`.
        RuntimeError: while training, if the metric was not logged and `strict` is set.

    Example:
        >>> trainer = Trainer(max_epochs=100, callbacks=[EarlyStopping("val_loss", patience=5)])
    """

    watches_metrics = True

    def __init__(
        self,
        monitor: str,
        min_delta: float = 0.0,
        patience: int = 3,
        verbose: bool = False,
        mode: str = "min",
        strict: bool = True,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_on_train_epoch_end: bool | None = None,
        log_rank_zero_only: bool = False,
    ) -> None:
        check_kinds(EarlyStopping.__init__, locals())
        if mode not in SIGN:
            raise ConfigError(
                f"EarlyStopping(mode={mode!r}) is not known. Use 'min' if lower is better, 'max' if"
                " higher is."
            )
        self.monitor = monitor
        # With the sign that Lightning gives this attribute
        self.min_delta = min_delta if mode == "max" else -min_delta
        self.patience = patience
        self.verbose = verbose
        self.mode = mode
        self.strict = strict
        self.check_finite = check_finite
        self.stopping_threshold = stopping_threshold
        self.divergence_threshold = divergence_threshold
        self.log_rank_zero_only = log_rank_zero_only
        self.wait_count = 0
        self.best_score = torch.tensor(math.inf if mode == "min" else -math.inf)
        self.stopped_epoch = 0
        self.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        self.stopping_reason_message: str | None = None
        self._check_on_train_epoch_end = check_on_train_epoch_end
        self._given_check = check_on_train_epoch_end

    def config_arguments(self) -> dict[str, object]:
        return {
            "min_delta": abs(self.min_delta),
            "check_on_train_epoch_end": self._given_check,
        }

    @property
    def state_key(self) -> str:
        return self._generate_state_key(monitor=self.monitor, mode=self.mode)

    @property
    def monitor_op(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The comparison that is true where its first argument is better: torch.lt or torch.gt."""
        return torch.lt if self.mode == "min" else torch.gt

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        if self._check_on_train_epoch_end is None:
            by_the_clock = trainer.val_check_time_s is not None
            self._check_on_train_epoch_end = (
                trainer.val_check_interval == 1.0
                and trainer.check_val_every_n_epoch == 1
                and not by_the_clock
            )

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._check_on_train_epoch_end and not trainer.comes_later(self.monitor):
            self._run_early_stopping_check(trainer)

    def on_validation_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        comes_later = trainer.comes_later(self.monitor)
        # of before the stop that an earlier value led to, as any rank knows
        if comes_later and trainer.world.any(trainer.should_stop):
            return
        if comes_later or not self._check_on_train_epoch_end:
            self._run_early_stopping_check(trainer)

    def state_dict(self) -> StateDict:
        return {
            "wait_count": self.wait_count,
            "stopped_epoch": self.stopped_epoch,
            "best_score": self.best_score,
            "patience": self.patience,
            "stopping_reason": self.stopping_reason.value,
            "stopping_reason_message": self.stopping_reason_message,
        }

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.wait_count = state_dict["wait_count"]
        self.stopped_epoch = state_dict["stopped_epoch"]
        self.best_score = state_dict["best_score"]
        # As in Lightning, that of the checkpoint wins over the argument
        self.patience = state_dict["patience"]
        self.stopping_reason = EarlyStoppingReason(
            state_dict.get("stopping_reason", EarlyStoppingReason.NOT_STOPPED.value)
        )
        self.stopping_reason_message = state_dict.get("stopping_reason_message")

    def _run_early_stopping_check(self, trainer: RunningTrainer) -> None:
        """Judge the newest value and, if any rank wants it, ask the Trainer to stop."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or trainer.fast_dev_run:
            return
        metrics = trainer.callback_metrics
        current = metrics.get(self.monitor)
        stops = False
        text = ""
        if current is not None:
            stops, text = self._decide(current.detach().squeeze().cpu())
        # a rank without the value comes here too: the others would wait for it
        told = trainer.world.all_gather_object(None if current is None else stops)
        missing = [one is None for one in told]
        if any(missing) and (self.strict or all(missing)):
            text = self._say_missing(metrics, missing)
            if self.strict:
                raise RuntimeError(text + " EarlyStopping(strict=False) goes on without it.")
            if self.verbose:
                warn(text, RuntimeWarning)
            return
        stops = any(told)
        trainer.should_stop = trainer.should_stop or stops
        if stops:
            self.stopped_epoch = trainer.current_epoch
            self.stopping_reason_message = text or None
        if text and self.verbose and (trainer.is_global_zero or not self.log_rank_zero_only):
            log.info(f"[rank: {trainer.global_rank}] {text}" if trainer.world.size > 1 else text)

    def _say_missing(self, metrics: Iterable[str], missing: list[bool]) -> str:
        ranks = [str(rank) for rank, is_missing in enumerate(missing) if is_missing]
        where = "" if all(missing) else f" on rank {', '.join(ranks)} of {len(missing)}"
        return (
            f"EarlyStopping watches {self.monitor!r}, which was not logged{where}. Logged so far:"
            f" {', '.join(map(repr, metrics)) or 'nothing'}. Log it with"
            f" self.log({self.monitor!r}, ...), or change monitor."
        )

    def _decide(self, current: Tensor) -> tuple[bool, str]:
        """Judge one value and remember it; returns whether to stop, and why, in words."""
        reason, improved = judge(
            current,
            self.best_score,
            self.wait_count,
            mode=self.mode,
            min_delta=self.min_delta if self.mode == "max" else -self.min_delta,
            patience=self.patience,
            check_finite=self.check_finite,
            stopping_threshold=self.stopping_threshold,
            divergence_threshold=self.divergence_threshold,
        )
        text = self._in_words(reason, improved, current)
        if improved:
            self.best_score = current
            self.wait_count = 0
        elif reason in (EarlyStoppingReason.NOT_STOPPED, EarlyStoppingReason.PATIENCE_EXHAUSTED):
            self.wait_count += 1
        stops = reason is not EarlyStoppingReason.NOT_STOPPED
        if stops:
            self.stopping_reason = reason
        return stops, text

    def _in_words(self, reason: EarlyStoppingReason, improved: bool, current: Tensor) -> str:
        name = self.monitor
        best = self.best_score
        sign = SIGN[self.mode]
        worse = ">" if self.mode == "min" else "<"
        if improved:
            gain = (
                f" by {abs(best - current):.3f} >= min_delta = {abs(self.min_delta)}"
                if math.isfinite(best)
                else ""
            )
            return f"Metric {name} improved{gain}. New best score: {current:.3f}"
        return {
            EarlyStoppingReason.NOT_STOPPED: "",
            EarlyStoppingReason.NON_FINITE_METRIC: (
                f"Monitored metric {name} = {current} is not finite. Previous best value was"
                f" {best:.3f}."
            ),
            EarlyStoppingReason.STOPPING_THRESHOLD: (
                f"Stopping threshold reached: {name} = {current} {sign} {self.stopping_threshold}."
            ),
            EarlyStoppingReason.DIVERGENCE_THRESHOLD: (
                f"Divergence threshold reached: {name} = {current} {worse}"
                f" {self.divergence_threshold}."
            ),
            EarlyStoppingReason.PATIENCE_EXHAUSTED: (
                f"Monitored metric {name} did not improve in the last {self.wait_count + 1}"
                f" records. Best score: {best:.3f}."
            ),
        }[reason] + (
            " Signaling Trainer to stop." if reason is not EarlyStoppingReason.NOT_STOPPED else ""
        )
