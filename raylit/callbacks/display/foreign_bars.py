"""Progress bars with the arguments and the overridable parts of Lightning's two."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raylit.callbacks.display.progress_bar import Bar, ProgressBar
from raylit.errors import ConfigError, MissingPackageError
from raylit.runtime.aliases import Arguments, Batch, StateDict, StepOutput

if TYPE_CHECKING:
    from tqdm import tqdm

    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


def finite(number: float) -> float | None:
    """Return a total as tqdm wants it: None for one that is not known."""
    return None if number in (float("inf"), None) else number


class TQDMProgressBar(Bar):
    """Shows bars of tqdm: one for training or evaluation, one for a validation while it runs.

    Override `init_train_tqdm` and its like to have others, and `get_metrics` to show other values.

    Args:
        refresh_rate: batches between two pictures; 0 shows nothing.
        process_position: how many lines above are of other bars.
        leave: whether the bar of an epoch stays when the next begins.

    Raises:
        MissingPackageError: tqdm is not installed.

    Example:
        >>> Trainer(callbacks=[TQDMProgressBar(refresh_rate=10)])
    """

    BAR_FORMAT = (
        "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
        "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
    )

    def __init__(
        self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False
    ) -> None:
        try:
            import tqdm  # noqa: F401
        except ImportError as error:
            raise MissingPackageError("tqdm", "TQDMProgressBar") from error
        if refresh_rate < 0:
            raise ConfigError(f"refresh_rate={refresh_rate}: give a number of at least 0.")
        self._refresh_rate = refresh_rate
        self._process_position = process_position
        self._leave = leave
        self._bars: dict[str, tqdm] = {}

    @property
    def refresh_rate(self) -> int:
        """Batches between two pictures."""
        return self._refresh_rate

    @property
    def process_position(self) -> int:
        """Lines above that are of other bars."""
        return self._process_position

    @property
    def is_enabled(self) -> bool:
        return self._enabled and self.refresh_rate > 0

    def _bar(self, name: str) -> object:
        if name not in self._bars:
            raise TypeError(
                f"The `{type(self).__name__}.{name}_progress_bar` reference has not been set yet."
            )
        return self._bars[name]

    @property
    def train_progress_bar(self) -> tqdm:
        """The bar of training."""
        return self._bar("train")

    @train_progress_bar.setter
    def train_progress_bar(self, bar: tqdm) -> None:
        self._bars["train"] = bar

    @property
    def val_progress_bar(self) -> tqdm:
        """The bar of validation."""
        return self._bar("val")

    @val_progress_bar.setter
    def val_progress_bar(self, bar: tqdm) -> None:
        self._bars["val"] = bar

    @property
    def test_progress_bar(self) -> tqdm:
        """The bar of a test."""
        return self._bar("test")

    @test_progress_bar.setter
    def test_progress_bar(self, bar: tqdm) -> None:
        self._bars["test"] = bar

    @property
    def predict_progress_bar(self) -> tqdm:
        """The bar of a prediction."""
        return self._bar("predict")

    @predict_progress_bar.setter
    def predict_progress_bar(self, bar: tqdm) -> None:
        self._bars["predict"] = bar

    # ---- the bars; to be overridden ----

    def _new(self, description: str, line: int, leave: bool) -> tqdm:
        from tqdm.auto import tqdm

        return tqdm(
            desc=description,
            position=line + self.process_position,
            disable=self.is_disabled,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )

    def init_sanity_tqdm(self) -> tqdm:
        """Make the bar of the sanity check."""
        return self._new(self.sanity_check_description, 0, leave=False)

    def init_train_tqdm(self) -> tqdm:
        """Make the bar of training."""
        return self._new(self.train_description, 0, leave=True)

    def init_validation_tqdm(self) -> tqdm:
        """Make the bar of validation, below that of training in a fit."""
        alone = self.trainer.state.fn != "fit"
        return self._new(self.validation_description, 0 if alone else 1, leave=alone)

    def init_test_tqdm(self) -> tqdm:
        """Make the bar of a test."""
        return self._new(self.test_description, 0, leave=True)

    def init_predict_tqdm(self) -> tqdm:
        """Make the bar of a prediction."""
        return self._new(self.predict_description, 0, leave=True)

    # ---- when they are drawn ----

    def _should_update(self, current: int, total: float) -> bool:
        return self.is_enabled and (current % self.refresh_rate == 0 or current == total)

    def _advance(self, bar: tqdm, number: int) -> None:
        if self._should_update(number, bar.total):
            bar.n = number
            bar.refresh()

    def on_sanity_check_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.val_progress_bar = self.init_sanity_tqdm()

    def on_sanity_check_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.val_progress_bar.close()

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.train_progress_bar = self.init_train_tqdm()

    def on_train_epoch_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._leave:
            self.train_progress_bar = self.init_train_tqdm()
        bar = self.train_progress_bar
        bar.reset(finite(self.total_train_batches))
        bar.initial = 0
        bar.set_description(f"Epoch {trainer.current_epoch}")

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        bar = self.train_progress_bar
        if self._should_update(batch_idx + 1, bar.total):
            self._advance(bar, batch_idx + 1)
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        bar = self.train_progress_bar
        if not bar.disable:
            bar.set_postfix(self.get_metrics(trainer, pl_module))
        if self._leave:
            bar.close()

    def on_train_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.train_progress_bar.close()

    def _evaluated(self, stage: str, bar: tqdm, batch_idx: int, dataloader_idx: int) -> None:
        if self.has_dataloader_changed(dataloader_idx):
            bar.reset(finite(self.total_batches(stage)))
            bar.initial = 0
        self._advance(bar, batch_idx + 1)

    def on_validation_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.reset_dataloader_idx_tracker()
        if not trainer.sanity_checking:
            self.val_progress_bar = self.init_validation_tqdm()

    def on_validation_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluated("val", self.val_progress_bar, batch_idx, dataloader_idx)

    def on_validation_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if "train" in self._bars and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))
        if not trainer.sanity_checking:
            self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()

    def on_test_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.reset_dataloader_idx_tracker()
        self.test_progress_bar = self.init_test_tqdm()

    def on_test_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluated("test", self.test_progress_bar, batch_idx, dataloader_idx)

    def on_test_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.test_progress_bar.close()

    def on_predict_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.reset_dataloader_idx_tracker()
        self.predict_progress_bar = self.init_predict_tqdm()

    def on_predict_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluated("predict", self.predict_progress_bar, batch_idx, dataloader_idx)

    def on_predict_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.predict_progress_bar.close()

    def print(self, *args: object, sep: str = " ", **kwargs: object) -> None:
        """Print above the bars."""
        from tqdm.auto import tqdm

        tqdm.write(sep.join(map(str, args)), **kwargs)

    def __getstate__(self) -> StateDict:
        return {**super().__getstate__(), "_bars": {}}


@dataclass
class RichProgressBarTheme:
    """Styles of Lightning's bar of rich; `RichProgressBar` takes them, and keeps raylit's look."""

    description: str = ""
    progress_bar: str = "#6206E0"
    progress_bar_finished: str = "#6206E0"
    progress_bar_pulse: str = "#6206E0"
    batch_progress: str = ""
    time: str = "dim"
    processing_speed: str = "dim underline"
    metrics: str = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"


class RichProgressBar(ProgressBar):
    """raylit's own bar, which rich draws on a terminal, with the arguments of Lightning's.

    Args:
        refresh_rate: 0 shows nothing; else the clock decides.
        leave: not used: raylit prints a line for each epoch that has ended.
        theme: kept, not used.
        console_kwargs: likewise.
    """

    def __init__(
        self,
        refresh_rate: int = 1,
        leave: bool = False,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: Arguments | None = None,
        refresh_s: float = 0.2,
    ) -> None:
        super().__init__(refresh_rate, refresh_s)
        self.leave = leave
        self.theme = theme or RichProgressBarTheme()
        self.console_kwargs = console_kwargs or {}
