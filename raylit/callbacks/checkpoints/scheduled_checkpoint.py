"""When ModelCheckpoint saves.

After batches, epochs or some time, and whether before or after validation.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from raylit.callbacks.checkpoints.checkpoint import Checkpoint
from raylit.callbacks.monitors.timer import SharedDeadline
from raylit.checkpoint import sharded
from raylit.errors import ConfigError, NotSavedError
from raylit.runtime.aliases import Batch, StepOutput
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class ScheduledCheckpoint(Checkpoint):
    """Calls one of its two `_save_at_...` when it is time to.

    Not in a fast dev run, in the sanity check, before the first step or twice at one.

    Subclasses implement these two; saving, they set `_last_global_step_saved` and take
    `_is_outdated` back.

    Args:
        monitor: a metric whose value a save has to wait for, or None.
        every_n_train_steps: see `ModelCheckpoint`, as for the others.
        train_time_interval: see there.
        every_n_epochs: see there.
        save_on_train_epoch_end: see there.

    Raises:
        ConfigError: more than one of the three intervals was given, or one is negative.
    """

    save_weights_only = False

    _in_fit = True

    def __init__(
        self,
        monitor: str | None,
        every_n_train_steps: int | None,
        train_time_interval: timedelta | None,
        every_n_epochs: int | None,
        save_on_train_epoch_end: bool | None,
    ) -> None:
        by_default = (
            every_n_train_steps is None and train_time_interval is None and every_n_epochs is None
        )
        self.monitor = monitor
        self._every_n_train_steps = every_n_train_steps or 0
        self._train_time_interval = train_time_interval
        self._every_n_epochs = 1 if by_default else every_n_epochs or 0
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._last_global_step_saved = 0  # before the first step there is nothing to save
        self._is_outdated = False  # the weights are others than those saved, without a step since
        self._defer_save_until_validation = False
        self._defer_save_until_epoch_end = False
        self._timed_from = 0.0
        self._deadline = SharedDeadline()
        self._unsure: dict[str, object] | None = None  # before what is being written
        name = type(self).__name__
        for argument, value in (
            ("every_n_train_steps", self._every_n_train_steps),
            ("every_n_epochs", self._every_n_epochs),
        ):
            if value < 0:
                raise ConfigError(f"{name}({argument}={value}): give a whole number of at least 0.")
        if (self._every_n_train_steps > 0) + (self._every_n_epochs > 0) + (
            train_time_interval is not None
        ) > 1:
            raise ConfigError(
                f"{name} got more than one of every_n_train_steps={self._every_n_train_steps},"
                f" every_n_epochs={self._every_n_epochs},"
                f" train_time_interval={train_time_interval}. Give one; for several, add a {name}"
                " for each."
            )

    def weights_changed(self) -> None:
        """Take notice that a callback has changed the weights, though no step was taken.

        A checkpoint that is due at this step is saved again; weights that are still unsaved at the
        end of training are saved then.
        """
        self._is_outdated = True

    def _save_at_step(self, trainer: RunningTrainer) -> None:
        """Save: steps or a time have passed. Called on all ranks."""
        raise NotImplementedError

    def _save_at_epoch(self, trainer: RunningTrainer, is_due: bool) -> None:
        """Save if `is_due`: an epoch has ended, or a validation in it. Called on all ranks."""
        raise NotImplementedError

    @contextmanager
    def _forgiving(self, trainer: RunningTrainer) -> Iterator[None]:
        """Warn of a checkpoint that cannot be written: the run is worth more than its file.

        The callback's attributes are then restored. A checkpoint that is written in the background
        is known to exist only after `_settle`, which is called before the next one.
        """
        self._settle(trainer)
        # With copies of dicts, such as `best_k_models`, which a save changes in place
        before = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(self).items()
        }
        try:
            yield
        except NotSavedError as error:
            vars(self).update(before)
            warn(f"{error} Training goes on without it.", RuntimeWarning)
        else:
            if trainer.strategy.saves_in_background:
                self._unsure = before

    def _settle(self, trainer: RunningTrainer) -> None:
        """Wait for the background write; if it failed, restore the attributes from before it."""
        before = self._unsure
        if before is None:
            return
        self._unsure = None
        saved = [
            path
            for name in ("_last_checkpoint_saved", "last_model_path", "best_model_path")
            if (path := vars(self).get(name))
        ]
        for path in dict.fromkeys(saved):
            problem = sharded.outcome(trainer.world, path)
            if problem is not None:
                vars(self).update(before)
                warn(
                    f"Could not write the checkpoint {path}: {problem}. Training goes on without"
                    " it.",
                    RuntimeWarning,
                )

    @property
    def every_n_epochs(self) -> int:
        """Saves in every n-th epoch; 0: epochs do not matter."""
        return self._every_n_epochs

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self._timed_from = time.monotonic()
        self._deadline.restart()
        self._is_outdated = False  # of a fit before
        # Of a fit before, too: its step 10 is not that of this one
        self._last_global_step_saved = min(self._last_global_step_saved, trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        due = self._every_n_train_steps > 0 and trainer.global_step % self._every_n_train_steps == 0
        if self._train_time_interval is not None:
            left_s = self._train_time_interval.total_seconds() - (
                time.monotonic() - self._timed_from
            )
            # By rank 0's clock: by their own, some ranks would save and others would not
            due = self._deadline.is_reached(trainer.world, left_s)
        if not due or self._should_skip_saving_checkpoint(trainer):
            return
        if self._train_time_interval is not None:
            self._timed_from = time.monotonic()
        awaited = self._awaited(trainer)
        if awaited == "validation":
            self._defer_save_until_validation = True
        elif awaited == "epoch":
            self._defer_save_until_epoch_end = True
        else:
            with self._forgiving(trainer):
                self._save_at_step(trainer)

    def on_validation_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._should_skip_saving_checkpoint(trainer):
            return
        if self._defer_save_until_validation:
            self._defer_save_until_validation = False
            with self._forgiving(trainer):
                self._save_at_step(trainer)
        elif not self._should_save_on_train_epoch_end(trainer):
            with self._forgiving(trainer):
                self._save_at_epoch(trainer, self._epoch_is_due(trainer))

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._should_skip_saving_checkpoint(trainer):
            return
        if self._defer_save_until_epoch_end:
            self._defer_save_until_epoch_end = False
            with self._forgiving(trainer):
                self._save_at_step(trainer)
        elif self._should_save_on_train_epoch_end(trainer):
            with self._forgiving(trainer):
                self._save_at_epoch(trainer, self._epoch_is_due(trainer))

    def wants_training_state(self, trainer: RunningTrainer) -> bool:
        saves_now = self._defer_save_until_validation or not self._should_save_on_train_epoch_end(
            trainer
        )
        return saves_now and not self.save_weights_only

    def _epoch_is_due(self, trainer: RunningTrainer) -> bool:
        return self._every_n_epochs > 0 and (trainer.current_epoch + 1) % self._every_n_epochs == 0

    def _should_skip_saving_checkpoint(self, trainer: RunningTrainer) -> bool:
        return (
            bool(trainer.fast_dev_run)
            or trainer.state.fn != "fit"
            or trainer.sanity_checking
            or (self._last_global_step_saved == trainer.global_step and not self._is_outdated)
        )

    def _should_save_on_train_epoch_end(self, trainer: RunningTrainer) -> bool:
        """Tell whether an epoch is saved at its end rather than after validation.

        Validation may run several times in an epoch, or not in each.
        """
        # Its value comes with the end of a validation that training does not wait for
        if trainer.comes_later(self.monitor):
            return False
        if self._save_on_train_epoch_end is not None:
            return self._save_on_train_epoch_end
        if trainer.val_check_time_s is not None or trainer.check_val_every_n_epoch != 1:
            return False
        return sum(trainer.num_val_batches) == 0 or trainer.val_check_interval == 1.0

    def _awaited(self, trainer: RunningTrainer) -> str | None:
        """Tell for which event a save has to wait, since it renews the metric, as rank 0 knows.

        A checkpoint is ranked by a value of its own weights, not by the epoch before.
        """
        if self.monitor is None:
            return None
        awaited = trainer.renewed_by(self.monitor)
        is_missing = self.monitor not in trainer.callback_metrics
        if awaited is None and is_missing and trainer.enable_validation:
            awaited = "validation"  # which may bring the first value
        found: str | None = trainer.world.broadcast_object(awaited)
        return found
