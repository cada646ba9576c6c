"""CalibrationLogger: is the model right as often as it says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raylit.callbacks.pictures.chosen import Array
from raylit.callbacks.pictures.picture import (
    PredictionPicture,
    aligned,
    canvas,
    classified,
)
from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch, StepOutput
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

UNIT = 2**-32  # confidences are added up as multiples of it: the sum has no order


class CalibrationLogger(PredictionPicture):
    """Draws how often predictions are right that the model is so and so sure of.

    Predictions are put into bins by the probability of the class that was predicted. In a model
    that is calibrated those of 0.8 are right in 80 %. The mean distance from that, the expected
    calibration error, is logged as `val_calibration_error`; sums are exact over ranks.

    Args:
        num_bins: how many, of equal width.
        from_logits: whether scores are logits; False: they are probabilities.
        ignore_index: a label that is left out, such as that of padding.
        name: under which the loggers keep it.
        every_n_epochs: in which epochs of a fit.
        dark: whether the background is dark.
        prediction: as in `ConfusionMatrixLogger`.
        label: as in `ConfusionMatrixLogger`.

    Attributes:
        counts: of the last evaluation, predictions in each bin.
        accuracy: the share that was right in each bin; NaN where there are none.
        confidence: the mean probability in each bin; NaN where there are none.
        error: the expected calibration error, NaN before the first evaluation.

    Raises:
        ConfigError: `num_bins` is below 2, there is no logger, or predictions or labels cannot be
            found or are no scores.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599.

    Example:
        >>> trainer = Trainer(callbacks=[CalibrationLogger(num_bins=15)], logger=CSVLogger("logs"))
    """

    def __init__(
        self,
        num_bins: int = 10,
        from_logits: bool = True,
        ignore_index: int = -100,
        name: str = "calibration",
        every_n_epochs: int = 1,
        dark: bool = False,
        prediction: str | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(name, every_n_epochs, dark, prediction, label, from_logits)
        if num_bins < 2:
            raise ConfigError(f"CalibrationLogger(num_bins={num_bins}) must be 2 or more.")
        self.num_bins = num_bins
        self.ignore_index = ignore_index
        self.counts: Array = np.zeros(num_bins, np.int64)
        self.accuracy: Array = np.full(num_bins, np.nan)
        self.confidence: Array = np.full(num_bins, np.nan)
        self.error = float("nan")
        self._sums: Tensor | None = None

    def begin(self) -> None:
        self._sums = None

    def see(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        dataloader_idx: int,
    ) -> None:
        predicted = aligned(self.predicted(trainer, pl_module, outputs, batch))
        self.look_at(predicted)
        found = classified(predicted, self.from_logits)
        if found.confidence is None:
            raise ConfigError(
                "CalibrationLogger needs scores, but the predictions are whole numbers. Return"
                " {'logits': ...} from the step."
            )
        wanted = found.labels != self.ignore_index
        counted = (wanted & found.is_number).long()
        confidence = found.confidence.nan_to_num(0.0)
        bins = (confidence * self.num_bins).long().clamp(0, self.num_bins - 1)
        rows = (
            counted,
            counted * (found.classes == found.labels),
            counted * (confidence.double() / UNIT).round().long(),
            (wanted & ~found.is_number).long(),
        )
        sums = torch.zeros(4, self.num_bins, dtype=torch.int64, device=counted.device)
        for index, row in enumerate(rows):
            sums[index].scatter_add_(0, bins, row)
        self._sums = sums if self._sums is None else self._sums + sums

    def draw(self, trainer: RunningTrainer, pl_module: LightningModule, name: str) -> None:
        self.tell_of_shares()
        own = None if self._sums is None else self._sums.cpu().numpy()
        every = [one for one in trainer.world.all_gather_object(own) if one is not None]
        self._sums = None
        if not every:
            return
        self.counts, right, confidence, left_out = np.sum(every, 0)
        if left_out.any():
            warn(f"CalibrationLogger leaves out {left_out.sum()} predictions that are NaN.")
        filled = np.where(self.counts > 0, self.counts, np.nan)
        self.accuracy = right / filled
        self.confidence = confidence * UNIT / filled
        gaps = np.nan_to_num(np.abs(self.accuracy - self.confidence))
        self.error = float((gaps * self.counts).sum() / max(self.counts.sum(), 1))
        stage = "test" if trainer.testing else "val"
        self.log(f"{stage}_calibration_error", self.error, batch_size=1)
        if trainer.is_global_zero:
            pl_module.log_figure(name, self.plot())

    def plot(self) -> Figure:
        """Draw the last evaluation."""
        with canvas(4.5, 5.0, self.dark) as figure:
            above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
            places = (np.arange(self.num_bins) + 0.5) / self.num_bins
            width = 0.9 / self.num_bins
            above.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1)
            above.bar(places, np.nan_to_num(self.accuracy), width, color="#4c9be8", label="right")
            above.plot(
                self.confidence,
                self.accuracy,
                "o",
                color="#ffb000",
                markersize=4,
                label="mean probability",
            )
            above.set_ylim(0, 1)
            above.set_ylabel("share that is right")
            above.set_title(f"expected calibration error {self.error:.4f}")
            above.legend(loc="upper left", fontsize=8)
            below.bar(places, self.counts, width, color="gray")
            below.set_xlabel("probability of the predicted class")
            below.set_ylabel("predictions")
        return figure
