"""Limits: how long a run goes on, how often each action is due, and how much it reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Limits:
    """The limits in effect in a run: at first the Trainer's arguments; they may change.

    The attributes are the Trainer's of the same names; see its arguments. Users and callbacks write
    them, through the Trainer, before a run and while it lasts; so does a rescale plan, before it.

    Attributes:
        max_epochs: -1 or None: no limit.
        min_epochs: training does not stop earlier than this.
        max_steps: optimizer steps; -1: no limit.
        min_steps: training does not stop earlier than this.
        limit_train_batches: batches of an epoch, or a fraction of them.
        limit_val_batches: likewise for validation.
        limit_test_batches: likewise for test.
        limit_predict_batches: likewise for prediction.
        num_sanity_val_steps: validation batches ahead of training; infinity: all.
        val_check_interval: batches between two validations, or a fraction of an epoch.
        val_check_time_s: seconds between two validations, or None if batches are counted.
        check_val_every_n_epoch: None: `val_check_interval` counts batches over epochs.
        reload_dataloaders_every_n_epochs: 0: never.
        log_every_n_steps: how often step values go to the loggers; 0: never.
        accumulate_grad_batches: batches whose gradients add up to one optimizer step.
        gradient_clip_val: bound of the gradients; None or 0: none.
        gradient_clip_algorithm: `norm` or `value`; None is `norm`.
    """

    max_epochs: int | None
    min_epochs: int | None
    max_steps: int
    min_steps: int | None
    limit_train_batches: int | float
    limit_val_batches: int | float
    limit_test_batches: int | float
    limit_predict_batches: int | float
    num_sanity_val_steps: float
    val_check_interval: int | float
    val_check_time_s: float | None
    check_val_every_n_epoch: int | None
    reload_dataloaders_every_n_epochs: int
    log_every_n_steps: int
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    gradient_clip_algorithm: str | None
