"""Shows how far a run is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from raylit.callbacks.display.screen import make_screen
from raylit.core.aliases import Batch, StateDict, StepOutput
from raylit.core.callback import Callback, Trainer

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

SHOWN_WAIT = 0.1  # share of the time that steps wait for data, from which on it is shown
PAUSE = 100  # times as long as drawing a picture took, at least, until the next


class ProgressBar(Callback):
    """Shows epoch, batch, speed and the metrics logged with `prog_bar=True`.

    A live bar on a terminal, plain lines elsewhere.

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
        self._screen: Any = None
        self._next = 0.0
        self._started = 0.0
        self._batches = 0

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the values beside the bar: the logger's version as `v_num`, then the metrics.

        Override to show other things.
        """
        shown: dict[str, Any] = {}
        version = trainer.logger.version if trainer.logger is not None else None
        if version is not None:
            shown["v_num"] = version[-4:] if isinstance(version, str) else version
        if trainer.data_wait >= SHOWN_WAIT:
            shown["data_wait"] = trainer.data_wait
        return {**shown, **trainer.progress_bar_metrics}

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar."""
        text = sep.join(map(str, args))
        if self._screen is not None:
            self._screen.print(text)
        else:
            print(text, **kwargs)

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Find the screen: the one of this process, or the driver's."""
        if trainer.is_global_zero and self.refresh_rate > 0:
            self._screen = trainer.display or make_screen()

    def teardown(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back."""
        self._close()

    def on_exception(
        self, trainer: RunningTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back before the traceback is printed."""
        self._close()

    def on_train_epoch_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Begin to count anew."""
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
            trainer.num_val_batches,
        )

    def on_validation_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        """Take validation's bar away."""
        self._show(
            trainer,
            pl_module,
            "sanity_check" if trainer.sanity_checking else "validate",
            self._batches,
            sum(trainer.num_val_batches),
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
        self._screen.show(
            {
                "stage": stage,
                "epoch": trainer.current_epoch,
                "max_epochs": trainer.max_epochs if trainer.max_epochs not in (None, -1) else None,
                "batch": batch,
                "total": None if total == float("inf") else int(total),
                "rate": self._batches / max(now - self._started, 1e-9),
                "metrics": (
                    self.get_metrics(trainer, pl_module) if stage in ("train", "test") else {}
                ),
                "is_last": is_last,
            }
        )
        drawn = time.monotonic()
        self._next = drawn + max(self.refresh_s, PAUSE * (drawn - now))

    def _close(self) -> None:
        if self._screen is not None:
            self._screen.close()
            self._screen = None

    def __getstate__(self) -> StateDict:
        return {**super().__getstate__(), "_screen": None}


# Lightning's names for its two bars; here it is one.
RichProgressBar = TQDMProgressBar = ProgressBar
