"""Shows how far a run is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from raylit.callbacks.display.screen import make_screen
from raylit.callbacks.monitors.timer import Timer
from raylit.core.callback import Callback
from raylit.runtime.aliases import Batch, StateDict, StepOutput

if TYPE_CHECKING:
    from raylit.core.job import Display
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

SHOWN_WAIT = 0.1  # share of the time that steps wait for data, from which on it is shown
PAUSE = 100  # times as long as drawing a picture took, at least, until the next


class Bar(Callback):
    """Base of every progress bar; it draws nothing. Lightning calls it ProgressBar.

    One of your own derives from it, and draws in the hooks of a Callback.
    """

    _trainer: RunningTrainer | None = None
    _enabled = True
    _loader = -1

    @property
    def trainer(self) -> RunningTrainer:
        """The Trainer that it belongs to.

        Raises:
            TypeError: it belongs to none yet.
        """
        if self._trainer is None:
            raise TypeError(
                f"The `{type(self).__name__}._trainer` reference has not been set yet: read it in"
                " a hook, or give the bar to a Trainer and fit."
            )
        return self._trainer

    @property
    def is_enabled(self) -> bool:
        """Whether it draws."""
        return self._enabled

    @property
    def is_disabled(self) -> bool:
        """Whether it draws nothing."""
        return not self.is_enabled

    def disable(self) -> None:
        """Draw nothing from now on; so it is on all ranks but 0."""
        self._enabled = False

    def enable(self) -> None:
        """Draw again."""
        self._enabled = True

    @property
    def sanity_check_description(self) -> str:
        """The words in front of the bar of the sanity check; likewise the others."""
        return "Sanity Checking"

    @property
    def train_description(self) -> str:
        """See `sanity_check_description`."""
        return "Training"

    @property
    def validation_description(self) -> str:
        """See `sanity_check_description`."""
        return "Validation"

    @property
    def test_description(self) -> str:
        """See `sanity_check_description`."""
        return "Testing"

    @property
    def predict_description(self) -> str:
        """See `sanity_check_description`."""
        return "Predicting"

    @property
    def total_train_batches(self) -> float:
        """Batches of an epoch of training; infinity if that cannot be told."""
        return self.trainer.num_training_batches

    @property
    def total_val_batches(self) -> float:
        """Batches of a validation within the fit, of all loaders."""
        return sum(self.trainer.num_val_batches)

    def total_batches(self, stage: str) -> float:
        """Return the batches of the loader that is evaluated now: `val`, `test`, `predict`."""
        totals: list[float] = {
            "val": self.trainer.num_val_batches,
            "test": self.trainer.num_test_batches,
            "predict": self.trainer.num_predict_batches,
        }[stage]
        if stage == "val" and self.trainer.sanity_checking:
            totals = [min(self.trainer.num_sanity_val_steps, number) for number in totals]
        return totals[max(self._loader, 0)] if totals else 0

    @property
    def total_val_batches_current_dataloader(self) -> float:
        """Batches of the validation loader that is read now."""
        return self.total_batches("val")

    @property
    def total_test_batches_current_dataloader(self) -> float:
        """Batches of the test loader that is read now."""
        return self.total_batches("test")

    @property
    def total_predict_batches_current_dataloader(self) -> float:
        """Batches of the loader to predict that is read now."""
        return self.total_batches("predict")

    def has_dataloader_changed(self, dataloader_idx: int) -> bool:
        """Tell whether an evaluation has come to another loader since the last call."""
        before = self._loader
        self._loader = dataloader_idx
        return before != dataloader_idx

    def reset_dataloader_idx_tracker(self) -> None:
        """An evaluation begins: its first loader is another one."""
        self._loader = -1

    def get_metrics(
        self, trainer: RunningTrainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the values beside the bar: the logger's version as `v_num`, then the metrics.

        Override to show other things.
        """
        shown: dict[str, int | str | float | dict[str, float]] = {}
        version = getattr(trainer.logger, "version", None)
        if version is not None:
            shown["v_num"] = version[-4:] if isinstance(version, str) else version
        return {**shown, **trainer.progress_bar_metrics}

    def print(self, *args: object, **kwargs: Any) -> None:
        """Print above the bar."""
        print(*args, **kwargs)

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        self._trainer = trainer
        if not trainer.is_global_zero:
            self.disable()

    def __getstate__(self) -> StateDict:
        return {**super().__getstate__(), "_trainer": None}


class ProgressBar(Bar):
    """Shows epoch, batch, speed, the time that is left and the metrics logged with `prog_bar=True`.

    A live bar at the bottom of a terminal, above which all that is printed or logged scrolls; plain
    lines elsewhere, in Emacs, in CI and where `TERM` is `dumb`.

    On Ray it is drawn by the driver. It looks at the clock at every batch and at the metrics only
    when it draws, so it costs a step next to nothing and never makes a GPU wait. The environment
    variable RAYLIT_PROGRESS (`rich`, `plain`, `none`) chooses the look.

    Args:
        refresh_rate: 0 shows nothing; any other number is for those who come from Lightning: the
            clock decides.
        refresh_s: seconds between two pictures; more where drawing them would take over 1 % of the
            time.

    Example:
        >>> class Quiet(ProgressBar):
        ...     def get_metrics(self, trainer, pl_module):
        ...         return {
        ...             k: v
        ...             for k, v in super().get_metrics(trainer, pl_module).items()
        ...             if k != "v_num"
        ...         }
    """

    def __init__(self, refresh_rate: int = 1, refresh_s: float = 0.2) -> None:
        self.refresh_rate = refresh_rate
        self.refresh_s = refresh_s
        self._screen: Display | None = None
        self._next = 0.0
        self._started = 0.0
        self._batches = 0
        self._fit_started = 0.0
        self._fit_batches = 0  # of the epochs before this one
        self._fit_steps = 0  # taken before this fit, which may be resumed

    def get_metrics(
        self, trainer: RunningTrainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the values beside the bar: the logger's version as `v_num`, then the metrics.

        Override to show other things.
        """
        shown = super().get_metrics(trainer, pl_module)
        if trainer.data_wait >= SHOWN_WAIT:
            shown = {"data_wait": trainer.data_wait, **shown}
        return shown

    def print(self, *args: object, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar."""
        text = sep.join(map(str, args))
        if self._screen is not None:
            self._screen.print(text)
        else:
            print(text, **kwargs)

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Find the screen: the one of this process, or the driver's."""
        super().setup(trainer, pl_module, stage)
        if self.is_enabled and self.refresh_rate > 0:
            self._screen = trainer.display or make_screen()

    def teardown(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._close()

    def on_exception(
        self, trainer: RunningTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before the traceback is printed."""
        self._close()

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Begin to measure how long the fit takes."""
        self._begin()
        self._fit_started = time.monotonic()
        self._fit_batches = 0
        self._fit_steps = trainer.global_step

    def on_train_epoch_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Begin to count anew."""
        self._fit_batches += self._batches
        self._begin()

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Draw, if it is time to."""
        self._batches += 1
        if self._screen is not None and time.monotonic() >= self._next:
            self._show(trainer, pl_module, "train", batch_idx + 1, trainer.num_training_batches)

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Draw the epoch's result."""
        self._show(
            trainer,
            pl_module,
            "train",
            trainer.progress.batch,
            trainer.num_training_batches,
            is_last=True,
        )

    def on_validation_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Remember where training stood."""
        self._training = (self._started, self._batches)
        self._begin()

    def on_validation_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw, if it is time to."""
        self._evaluated(
            trainer,
            pl_module,
            "sanity_check" if trainer.sanity_checking else "validate",
            _validation_batches(trainer),
        )

    def on_validation_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Take validation's bar away."""
        self._show(
            trainer,
            pl_module,
            "sanity_check" if trainer.sanity_checking else "validate",
            self._batches,
            sum(_validation_batches(trainer)),
            is_last=True,
        )
        self._started, self._batches = self._training

    def on_test_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Begin to count anew."""
        self._begin()

    def on_test_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw, if it is time to."""
        self._evaluated(trainer, pl_module, "test", trainer.num_test_batches)

    def on_test_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Draw the end."""
        self._show(
            trainer, pl_module, "test", self._batches, sum(trainer.num_test_batches), is_last=True
        )

    def on_predict_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Begin to count anew."""
        self._begin()

    def on_predict_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw, if it is time to."""
        self._evaluated(trainer, pl_module, "predict", trainer.num_predict_batches)

    def on_predict_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Draw the end."""
        self._show(
            trainer,
            pl_module,
            "predict",
            self._batches,
            sum(trainer.num_predict_batches),
            is_last=True,
        )

    def _begin(self) -> None:
        self._started = time.monotonic()
        self._batches = 0

    def _evaluated(
        self, trainer: RunningTrainer, pl_module: LightningModule, stage: str, totals: list[float]
    ) -> None:
        self._batches += 1
        if self._screen is not None and time.monotonic() >= self._next:
            self._show(trainer, pl_module, stage, self._batches, sum(totals))

    def _show(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        stage: str,
        batch: int,
        total: float,
        is_last: bool = False,
    ) -> None:
        if self._screen is None:
            return
        now = time.monotonic()
        rate = self._batches / max(now - self._started, 1e-9)
        is_known = total != float("inf")
        self._screen.show(
            {
                "stage": stage,
                "epoch": trainer.current_epoch,
                "max_epochs": trainer.max_epochs if trainer.max_epochs not in (None, -1) else None,
                "batch": batch,
                "total": int(total) if is_known else None,
                "rate": rate,
                "left_s": max(total - batch, 0) / rate if is_known and rate else None,
                "fit_left_s": (
                    self._fit_left_s(trainer, batch, total, now) if stage == "train" else None
                ),
                "metrics": (
                    self.get_metrics(trainer, pl_module) if stage in ("train", "test") else {}
                ),
                "is_last": is_last,
            }
        )
        drawn = time.monotonic()
        self._next = drawn + max(self.refresh_s, PAUSE * (drawn - now))

    def _fit_left_s(
        self, trainer: RunningTrainer, batch: int, total: float, now: float
    ) -> float | None:
        """Return the seconds until a limit ends the fit, at the speed so far; None without a limit.

        The time of validations and checkpoints counts too.
        """
        took_s = now - self._fit_started
        batches = self._fit_batches + self._batches
        steps = trainer.global_step - self._fit_steps
        ends = [float("inf")]
        if trainer.max_epochs not in (None, -1) and batches:
            batches_left = (trainer.max_epochs - trainer.current_epoch) * total - batch
            ends.append(batches_left * took_s / batches)
        if trainer.max_steps != -1 and steps:
            ends.append((trainer.max_steps - trainer.global_step) * took_s / steps)
        for callback in trainer.callbacks:
            left_s = callback.time_remaining() if isinstance(callback, Timer) else None
            if left_s is not None:
                ends.append(left_s)
        return None if min(ends) == float("inf") else max(min(ends), 0.0)

    def _close(self) -> None:
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    def __getstate__(self) -> StateDict:
        return {**super().__getstate__(), "_screen": None}


def _validation_batches(trainer: RunningTrainer) -> list[float]:
    return trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
