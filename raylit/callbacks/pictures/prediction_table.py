"""PredictionTable: the worst, the best and some random samples, with prediction and label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from raylit.callbacks.pictures.chosen import (
    Array,
    Chosen,
    Sample,
    fingerprints,
    texts_of,
    values_of,
)
from raylit.callbacks.pictures.picture import (
    Predicted,
    PredictionPicture,
    aligned,
    canvas,
)
from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch, StepOutput

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

SCORES = "raylit.scores"
LABEL = "raylit.label"
LOSS = "raylit.loss"
CLASSES, NUMBERS = "classes", "numbers"  # as what labels may be read
TINY = 1e-7  # probabilities are taken for no less


class PredictionTable(PredictionPicture):
    """Keeps the worst, the best and some random samples of each validation and test as a table.

    A row has the loss, the label, the prediction and, for classes, its probability, and of the
    sample whatever is a number or a string. If there are images they are drawn too, in a figure of
    the same name. The loss of a sample is its cross-entropy where labels are classes, else its mean
    squared error; whole-number labels with one score each are classes if none is above 1. Random
    samples are drawn by their content, so they are the same in each epoch and
    on any number of ranks.

    Args:
        num_worst: samples with the largest losses.
        num_best: samples with the smallest losses.
        num_random: samples drawn by their content.
        class_names: written instead of the numbers of classes.
        seed: of the random samples.
        name: under which the loggers keep it.
        every_n_epochs: in which epochs of a fit.
        dark: whether the background of the images is dark.
        prediction: as in `ConfusionMatrixLogger`.
        label: as in `ConfusionMatrixLogger`.
        from_logits: whether scores of classes are logits; False: they are probabilities.
        ignore_index: samples of which no label is another are left out.

    Attributes:
        rows: the last table, names of columns to values, on all ranks.

    Raises:
        ConfigError: no sample is wanted, there is no logger, or predictions or labels cannot be
            found.

    Example:
        >>> trainer = Trainer(callbacks=[PredictionTable(num_worst=20)], logger=CSVLogger("logs"))
    """

    def __init__(
        self,
        num_worst: int = 8,
        num_best: int = 8,
        num_random: int = 8,
        class_names: Sequence[str] | None = None,
        seed: int = 0,
        name: str = "predictions",
        every_n_epochs: int = 1,
        dark: bool = False,
        prediction: str | None = None,
        label: str | None = None,
        from_logits: bool = True,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(name, every_n_epochs, dark, prediction, label, from_logits)
        self.ignore_index = ignore_index
        self.numbers = {"worst": num_worst, "best": num_best, "random": num_random}
        if min(self.numbers.values()) < 0 or sum(self.numbers.values()) == 0:
            raise ConfigError(
                f"PredictionTable(num_worst={num_worst}, num_best={num_best},"
                f" num_random={num_random}): none may be negative, and one must be positive."
            )
        self.class_names = None if class_names is None else list(class_names)
        self.seed = seed
        self.rows: dict[str, list[object]] = {}
        self._chosen: dict[str, dict[str, Chosen]] = {}
        self._are_counts: Tensor | None = None  # whether a label is above 1, or below 0
        self._is_of_classes = False  # whether `rows` are

    def begin(self) -> None:
        # by both losses, since only after all labels it is known which they are
        self._chosen = {
            reading: {kind: Chosen(number) for kind, number in self.numbers.items()}
            for reading in (CLASSES, NUMBERS)
        }
        self._are_counts = None

    def see(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        dataloader_idx: int,
    ) -> None:
        predicted = aligned(self.predicted(trainer, pl_module, outputs, batch))
        if not predicted.labels.is_floating_point():
            self.look_at(predicted)
        size = len(predicted.scores)
        labels = predicted.labels
        values = values_of(batch, size)
        content = fingerprints(values, size, self.seed).to(labels.device)
        texts = texts_of(batch, size)
        wanted = counted(labels, self.ignore_index).reshape(size, -1)
        if not labels.is_floating_point():
            outside = (((labels < 0) | (labels > 1)).reshape(size, -1) & wanted).any()
            self._are_counts = outside if self._are_counts is None else self._are_counts | outside
        for reading, losses in losses_of(predicted, self.from_logits, self.ignore_index).items():
            kept = values | {SCORES: predicted.scores, LABEL: labels, LOSS: losses}
            worst = torch.nan_to_num(-losses.double(), nan=-torch.inf, posinf=torch.inf)
            keys = {"worst": worst, "best": losses.double(), "random": content.double()}
            for kind, chosen in self._chosen[reading].items():
                key = torch.where(wanted.any(1), keys[kind], torch.nan)
                chosen.offer(key, content, kept, texts)

    def draw(self, trainer: RunningTrainer, pl_module: LightningModule, name: str) -> None:
        own = self._are_counts is not None and bool(self._are_counts)
        are_counts = any(trainer.world.all_gather_object(own))
        if not are_counts:
            self.tell_of_shares()
        found = {
            reading: {kind: one.gathered(trainer.world) for kind, one in chosen.items()}
            for reading, chosen in self._chosen.items()
        }
        self._chosen = {}
        self._are_counts = None
        readings = [reading for reading, samples in found.items() if any(samples.values())]
        if not readings:
            return
        reading = readings[-1] if are_counts else readings[0]
        picked = [(kind, sample) for kind, samples in found[reading].items() for sample in samples]
        self._is_of_classes = reading == CLASSES
        self.rows = self._table(picked)
        if not trainer.is_global_zero:
            return
        pl_module.log_table(name, self.rows)
        figure = self._figure(picked)
        if figure is not None:
            pl_module.log_figure(name, figure)

    def _table(self, picked: Sequence[tuple[str, Sample]]) -> dict[str, list[object]]:
        rows: dict[str, list[object]] = {"samples": [kind for kind, _ in picked]}
        rows["loss"] = [float(one.values[LOSS]) for _, one in picked]
        rows["label"] = [self._named(one.values[LABEL]) for _, one in picked]
        rows["prediction"] = [self._prediction(one) for _, one in picked]
        probabilities = [self._probability(one) for _, one in picked]
        if any(one is not None for one in probabilities):
            rows["probability"] = [*probabilities]
        for name in dict.fromkeys(name for _, one in picked for name in (*one.texts, *one.values)):
            if name in (SCORES, LABEL, LOSS):
                continue
            cells = [one.texts.get(name, _cell(one.values.get(name))) for _, one in picked]
            if any(cell is not None for cell in cells):
                rows.setdefault(name, [*cells])
        return rows

    def _named(self, label: Array) -> object:
        if label.size != 1:
            return " ".join(f"{value:.4g}" for value in label.reshape(-1)[:8])
        value = label.reshape(-1)[0].item()
        is_name = self.class_names is not None and isinstance(value, int)
        if is_name and self.class_names is not None and 0 <= value < len(self.class_names):
            return self.class_names[value]
        return value

    def _prediction(self, sample: Sample) -> object:
        scores = sample.values[SCORES]
        if _are_classes(sample):
            return self._named(np.asarray(int(scores.argmax(0)))) if scores.ndim == 1 else None
        if scores.size == 1 and self._is_of_classes and scores.dtype.kind == "f":
            bound = 0.0 if self.from_logits else 0.5
            return self._named(np.asarray(int(scores.reshape(-1)[0] > bound)))
        return self._named(scores)

    def _probability(self, sample: Sample) -> float | None:
        """Return the probability of the predicted class."""
        scores = sample.values[SCORES]
        if not self._is_of_classes or sample.values[LABEL].size != 1:
            return None
        if _are_classes(sample):
            if not self.from_logits:
                return float(scores.max())
            shares = np.exp(scores - scores.max())
            return float(shares.max() / shares.sum())
        share = float(scores.reshape(-1)[0])
        # By tanh: exp overflows below -709
        share = 0.5 * (1 + math.tanh(share / 2)) if self.from_logits else share
        return max(share, 1 - share)

    def _figure(self, picked: Sequence[tuple[str, Sample]]) -> Figure | None:
        """Draw the first input that is an image, of each sample; None if there is none."""
        name = next((name for name, one in picked[0][1].values.items() if _is_image(one)), None)
        if name is None:
            return None
        kinds = [kind for kind in self.numbers if any(one == kind for one, _ in picked)]
        columns = max(self.numbers[kind] for kind in kinds)
        with canvas(1.1 * columns + 0.4, 1.5 * len(kinds), self.dark) as figure:
            axes = figure.subplots(len(kinds), columns, squeeze=False)
            for one in axes.flat:
                one.set_axis_off()
            for row, kind in enumerate(kinds):
                samples = [sample for one, sample in picked if one == kind]
                for column, sample in enumerate(samples):
                    place = axes[row][column]
                    place.imshow(as_picture(sample.values[name]), cmap="gray")
                    label = self._named(sample.values[LABEL])
                    place.set_title(f"{self._prediction(sample)} ({label})", fontsize=7)
            figure.suptitle(f"{', '.join(kinds)}: prediction (label)", fontsize=9)
        return figure


def losses_of(predicted: Predicted, from_logits: bool, ignore_index: int) -> dict[str, Tensor]:
    """Return the loss of each sample, (samples,), by each way to read its label that there is.

    Args:
        predicted: scores and labels that belong together.
        from_logits: whether scores of classes are logits.
        ignore_index: a label whose loss does not count.
    """
    scores, labels = predicted.scores, predicted.labels
    wanted = counted(labels, ignore_index)
    found: dict[str, Tensor] = {}
    if not labels.is_floating_point() and scores.is_floating_point():
        classes = torch.where(wanted, labels, 0).long()
        if scores.ndim > labels.ndim:
            logs = scores.log_softmax(1) if from_logits else scores.clamp_min(TINY).log()
            found[CLASSES] = nn.functional.nll_loss(logs, classes, reduction="none")
        else:
            logits = scores if from_logits else scores.logit(TINY)
            found[CLASSES] = nn.functional.binary_cross_entropy_with_logits(
                logits, classes.clamp(0, 1).float(), reduction="none"
            )
    if scores.ndim == labels.ndim:
        found[NUMBERS] = (scores.float() - labels.float()).square()
    numbers = wanted.reshape(len(labels), -1).sum(1).clamp_min(1)
    return {
        reading: torch.where(wanted, losses, 0.0).reshape(len(labels), -1).double().sum(1) / numbers
        for reading, losses in found.items()
    }


def counted(labels: Tensor, ignore_index: int) -> Tensor:
    """Return which labels count: of whole numbers those that are not to be ignored."""
    return (
        torch.ones_like(labels, dtype=torch.bool)
        if labels.is_floating_point()
        else (labels != ignore_index)
    )


def _are_classes(sample: Sample) -> bool:
    scores, label = sample.values[SCORES], sample.values[LABEL]
    return scores.ndim == label.ndim + 1 and len(scores) > 1


def _cell(value: Array | None) -> object:
    """Return a sample's value as a number for a table; None if it is not a single number."""
    return value.reshape(-1)[0].item() if value is not None and value.size == 1 else None


def _is_image(value: Array) -> bool:
    is_small = min(value.shape[-2:], default=0) > 3
    return is_small and (value.ndim == 2 or (value.ndim == 3 and value.shape[0] in (1, 3)))


def as_picture(image: Array) -> Array:
    """Return (channels, height, width) or (height, width) of any range as matplotlib draws it."""
    low, high = float(image.min()), float(image.max())
    scaled: Array = (image - low) / ((high - low) or 1.0)
    if scaled.ndim == 2:
        return scaled
    return np.moveaxis(scaled, 0, -1) if len(scaled) == 3 else scaled[0]
