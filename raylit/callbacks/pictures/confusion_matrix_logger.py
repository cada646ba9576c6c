"""ConfusionMatrixLogger: which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from raylit.callbacks.pictures.chosen import Array
from raylit.callbacks.pictures.picture import (
    Classified,
    PredictionPicture,
    aligned,
    canvas,
    classified,
)
from raylit.errors import ConfigError, DataError
from raylit.runtime.aliases import Batch, StepOutput
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

MOST_NUMBERS = 20  # classes, up to which the counts are written into the squares


class ConfusionMatrixLogger(PredictionPicture):
    """Draws, at the end of each validation and test, which classes are taken for which.

    Rows are labels, columns predictions; the color is the share of the row, the number the count.
    Counts are whole numbers, added up over all ranks and loaders: those of one process. Scores
    (samples, classes, ...) are of classes; scores in the shape of the labels are of class 1, each
    by itself.

    Args:
        class_names: shown at the sides; None: numbers.
        num_classes: None: as many as there are scores. Needed where the step returns classes.
        ignore_index: a label that is left out, such as that of padding.
        name: under which the loggers keep it.
        every_n_epochs: in which epochs of a fit.
        dark: whether the background is dark.
        prediction: name of the predictions in what the step returns; None: `logits`, `prediction`,
            `preds` or `scores`, else what `forward` gives for the batch.
        label: name of the labels in what the step returns or in the batch; None: the usual ones.
        from_logits: whether scores are logits; False: they are probabilities.

    Attributes:
        matrix: the last one, (classes, classes) counts, on all ranks.

    Raises:
        ConfigError: there is no logger, or predictions or labels cannot be found.
        DataError: a label or a prediction is none of the classes.

    Example:
        >>> trainer = Trainer(
        ...     callbacks=[ConfusionMatrixLogger(class_names=["cat", "dog"])],
        ...     logger=CSVLogger("logs"),
        ... )
    """

    def __init__(
        self,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        ignore_index: int = -100,
        name: str = "confusion",
        every_n_epochs: int = 1,
        dark: bool = False,
        prediction: str | None = None,
        label: str | None = None,
        from_logits: bool = True,
    ) -> None:
        super().__init__(name, every_n_epochs, dark, prediction, label, from_logits)
        if class_names is not None and num_classes not in (None, len(class_names)):
            raise ConfigError(
                f"ConfusionMatrixLogger(num_classes={num_classes}) was given"
                f" {len(class_names)} class_names. Give as many, or leave out one of the two."
            )
        self.class_names = None if class_names is None else list(class_names)
        self.num_classes = len(class_names) if class_names is not None else num_classes
        self.ignore_index = ignore_index
        self.matrix: Array | None = None
        self._counts: Tensor | None = None
        self._left_out: Tensor | None = None

    def begin(self) -> None:
        self._counts = self._left_out = None

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
        number = self.num_classes or found.number
        if number is None:
            raise ConfigError(
                "ConfusionMatrixLogger cannot tell how many classes there are: the predictions are"
                " whole numbers. Give num_classes=10, or class_names."
            )
        wanted = found.labels != self.ignore_index
        counts = _counts(found, number, wanted & found.is_number)
        self._counts = counts if self._counts is None else self._counts + counts
        left_out = (wanted & ~found.is_number).sum()
        self._left_out = left_out if self._left_out is None else self._left_out + left_out

    def draw(self, trainer: RunningTrainer, pl_module: LightningModule, name: str) -> None:
        self.tell_of_shares()
        own = None
        if self._counts is not None and self._left_out is not None:
            own = self._counts.cpu().numpy(), int(self._left_out)
        every = [one for one in trainer.world.all_gather_object(own) if one is not None]
        self._counts = self._left_out = None
        if not every:
            return
        counts: Array = np.sum([one for one, _ in every], 0)
        if left_out := sum(number for _, number in every):
            warn(f"ConfusionMatrixLogger leaves out {left_out} predictions that are NaN.")
        number = len(counts) - 1
        if counts[number].any() or counts[:, number].any():
            raise DataError(
                f"ConfusionMatrixLogger: {counts[number].sum()} labels and"
                f" {counts[:, number].sum()} predictions are not from 0 to {number - 1}. Give"
                " num_classes or class_names for all of them, or the ignore_index of labels that do"
                " not count."
            )
        self.matrix = counts[:number, :number]
        if trainer.is_global_zero:
            pl_module.log_figure(name, self.plot())

    def plot(self) -> Figure:
        """Draw the last matrix.

        Raises:
            ConfigError: there is none yet.
        """
        if self.matrix is None:
            raise ConfigError("ConfusionMatrixLogger has seen no validation yet: call fit before.")
        number = len(self.matrix)
        share = self.matrix / np.maximum(self.matrix.sum(1, keepdims=True), 1)
        side = min(3.0 + 0.35 * number, 14.0)
        with canvas(side, side, self.dark) as figure:
            axes = figure.subplots()
            axes.imshow(share, cmap="magma" if self.dark else "Blues", vmin=0, vmax=1)
            names = self.class_names or [str(index) for index in range(number)]
            every = max(1, number // 40)
            axes.set_xticks(range(0, number, every), names[::every], rotation=90)
            axes.set_yticks(range(0, number, every), names[::every])
            axes.set_xlabel("prediction")
            axes.set_ylabel("label")
            right = np.trace(self.matrix) / max(self.matrix.sum(), 1)
            axes.set_title(f"{right:.2%} of {self.matrix.sum():,} right")
            if number <= MOST_NUMBERS:
                for row, column in np.argwhere(self.matrix):
                    is_bright = (share[row, column] > 0.5) == self.dark
                    color = "black" if is_bright else "white"
                    count = str(self.matrix[row, column])
                    axes.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
        return figure


def _counts(found: Classified, number: int, counted: Tensor) -> Tensor:
    """Return counts (number + 1, number + 1), in the last row and column those of no class."""
    labels, classes = (
        torch.where((one >= 0) & (one < number), one, number)
        for one in (found.labels, found.classes)
    )
    counts = torch.zeros((number + 1) ** 2, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(0, labels * (number + 1) + classes, counted.long())
    return counts.view(number + 1, number + 1)
