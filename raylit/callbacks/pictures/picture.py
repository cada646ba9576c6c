"""Common parts of the callbacks here: when a picture is due, and the predictions of a batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raylit.core.callback import Callback
from raylit.errors import ConfigError, MissingPackageError
from raylit.explain.explain import LABELS, labels_of
from raylit.runtime import rng
from raylit.runtime.aliases import Batch, StepOutput
from raylit.runtime.batch import parts_of
from raylit.runtime.messages import warn_once

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

SCORES = ("logits", "prediction", "predictions", "preds", "scores")


@dataclass
class Predicted:
    """The predictions of a batch, and its labels.

    Attributes:
        scores: (samples, ...).
        labels: (samples, ...), or None where there are none.
    """

    scores: Tensor
    labels: Tensor


class Picture(Callback):
    """Base of callbacks that draw a picture from the batches of a validation or test.

    A subclass overrides `see` and `draw`. Neither is called in the sanity check, nor in epochs in
    which nothing is due.

    Args:
        name: under which the loggers keep it; `test_` is put before it in `Trainer.test`.
        every_n_epochs: of a fit; `validate` and `test` always draw.
        dark: whether the background is dark.

    Raises:
        ConfigError: `every_n_epochs` is not positive; when a run begins, if there is no logger.
        MissingPackageError: when a run begins, if matplotlib is not installed.
    """

    looks_at_validation = True

    def __init__(self, name: str, every_n_epochs: int = 1, dark: bool = False) -> None:
        if every_n_epochs < 1:
            raise ConfigError(
                f"{type(self).__name__}(every_n_epochs={every_n_epochs}) must be 1 or more."
            )
        if not name:
            raise ConfigError(
                f"{type(self).__name__}(name='') leaves the loggers no name for what they keep."
                " Give one, or leave it out."
            )
        self.name = name
        self.every_n_epochs = every_n_epochs
        self.dark = dark

    def begin(self) -> None:
        """Forget the batches seen so far: an evaluation begins."""

    def see(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        dataloader_idx: int,
    ) -> None:
        """Look at a batch, on the rank that has it."""

    def draw(self, trainer: RunningTrainer, pl_module: LightningModule, name: str) -> None:
        """Draw the picture from the batches of all ranks; all of them call it.

        Args:
            trainer: the Trainer.
            pl_module: the module; its `log_figure` and kin keep what rank 0 gives them.
            name: for the loggers.
        """

    def is_due(self, trainer: RunningTrainer) -> bool:
        """Tell whether the evaluation that runs is to be drawn."""
        if trainer.sanity_checking:
            return False
        return trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "predict":
            return
        if not trainer.loggers:
            raise ConfigError(
                f"{type(self).__name__} has no logger to give its pictures to. Give the Trainer"
                " one, such as logger=MLFlowLogger('digits') or CSVLogger('logs'), or leave it out."
            )
        if importlib.util.find_spec("matplotlib") is None:
            raise MissingPackageError("matplotlib", type(self).__name__, "explain")

    def on_validation_epoch_start(
        self, trainer: RunningTrainer, pl_module: LightningModule
    ) -> None:
        self.begin()

    def on_test_epoch_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.begin()

    def on_validation_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.is_due(trainer):
            self.see(trainer, pl_module, outputs, batch, dataloader_idx)

    def on_test_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.see(trainer, pl_module, outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self.is_due(trainer):
            self.draw(trainer, pl_module, self.name)

    def on_test_epoch_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        self.draw(trainer, pl_module, f"test_{self.name}")


class PredictionPicture(Picture):
    """Base of pictures of predictions and labels.

    The return value of the step is read, if it is a mapping with `logits`, `prediction`, `preds` or
    `scores`, and if need be with `label`, `labels`, `target` or `y`. Otherwise the batch goes
    through `forward` once more, as `Trainer.explain` reads it (see
    `LightningModule.forward_inputs`).

    Args:
        name: as in `Picture`.
        every_n_epochs: as in `Picture`.
        dark: as in `Picture`.
        prediction: name of the predictions in what the step returns; None: the usual ones.
        label: name of the labels in what the step returns or in the batch; None: the usual ones.
        from_logits: whether scores of classes are logits; False: they are probabilities.
    """

    def __init__(
        self,
        name: str,
        every_n_epochs: int = 1,
        dark: bool = False,
        prediction: str | None = None,
        label: str | None = None,
        from_logits: bool = True,
    ) -> None:
        super().__init__(name, every_n_epochs, dark)
        self.prediction = prediction
        self.label = label
        self.from_logits = from_logits
        self._outside: Tensor | None = None  # whether a score of class 1 was not from 0 to 1

    def look_at(self, predicted: Predicted) -> None:
        """Check that scores are logits or probabilities, as `from_logits` says.

        Raises:
            ConfigError: they are said to be probabilities, and some are not from 0 to 1.
        """
        scores = predicted.scores
        if not scores.is_floating_point():
            return
        outside = ((scores < 0) | (scores > 1)).any()
        if not self.from_logits and bool(outside):
            raise ConfigError(
                f"{type(self).__name__}(from_logits=False), but predictions are from"
                f" {float(scores.min()):.3g} to {float(scores.max()):.3g}: they are no"
                " probabilities. Leave from_logits=False away."
            )
        if scores.shape == predicted.labels.shape and not predicted.labels.is_floating_point():
            self._outside = outside if self._outside is None else self._outside | outside

    def tell_of_shares(self) -> None:
        """Warn once if all scores of class 1 may be probabilities that were taken for logits."""
        if self.from_logits and self._outside is not None and not bool(self._outside):
            warn_once(
                f"{type(self).__name__} takes scores for logits, but all of them are from 0 to 1."
                " If they are probabilities, say from_logits=False: class 1 is then predicted from"
                " 0.5 on, not from 0."
            )
        self._outside = None

    def predicted(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
    ) -> Predicted:
        """Return the predictions and labels of a batch.

        Raises:
            ConfigError: it, or the labels, cannot be found.
        """
        given = dict(parts_of(outputs)) if isinstance(outputs, Mapping) else {}
        names = (self.prediction,) if self.prediction is not None else SCORES
        scores = next((given[name] for name in names if name in given), None)
        if scores is None and self.prediction is not None:
            raise ConfigError(
                f"{type(self).__name__}(prediction={self.prediction!r}): the step of"
                f" {type(pl_module).__name__} returns {_told(outputs)}. Return a dict that has it."
            )
        if scores is None:
            trainer.strategy.refuse_if_sharded(
                f"{type(self).__name__}, unless the step returns a dict with 'logits',"
            )
            scores = _forward(trainer, pl_module, batch)
        if not isinstance(scores, Tensor):
            raise ConfigError(
                f"{type(self).__name__}: what {type(pl_module).__name__} predicts is a"
                f" {type(scores).__name__}, not a tensor. Return {{'logits': tensor}} from the"
                " step."
            )
        labels = self._labels(pl_module, given, batch)
        scores = scores.detach()
        return Predicted(scores.float() if scores.is_floating_point() else scores, labels.detach())

    def _labels(
        self, pl_module: LightningModule, given: Mapping[str, object], batch: Batch
    ) -> Tensor:
        found: object = None
        if self.label is not None:
            parts = {} if isinstance(batch, Tensor) else dict(parts_of(batch))
            found = given.get(self.label, parts.get(self.label))
        else:
            found = next((given[name] for name in LABELS if name in given), None)
            if found is None:
                found = labels_of(batch, len(pl_module.forward_inputs(batch)))
        if not isinstance(found, Tensor):
            raise ConfigError(
                f"{type(self).__name__}: neither what the step returns nor the batch, a"
                f" {type(batch).__name__}, has labels called"
                f" {self.label or ', '.join(LABELS)}. Return them from the step, {{'logits': ...,"
                " 'label': ...}, or say their name: label=..."
            )
        return found


def _forward(trainer: RunningTrainer, pl_module: LightningModule, batch: Batch) -> object:
    precision = trainer.precision_plugin
    with rng.isolated(), torch.no_grad(), precision.context() or nullcontext():
        return pl_module(*pl_module.forward_inputs(batch))


def _told(outputs: StepOutput) -> str:
    if isinstance(outputs, Mapping):
        return f"a dict with {', '.join(map(str, outputs)) or 'nothing'}"
    return f"a {type(outputs).__name__}"


@dataclass
class Classified:
    """Scores read as those of classes.

    Attributes:
        classes: the predicted class of each element, (elements,).
        labels: (elements,).
        confidence: the probability of the predicted class, (elements,); None: there are no scores.
        number: of classes; None where that cannot be told.
        is_number: whether the model said something of an element: False where its scores are NaN.
    """

    classes: Tensor
    labels: Tensor
    confidence: Tensor | None
    number: int | None
    is_number: Tensor


def aligned(predicted: Predicted) -> Predicted:
    """Return scores and labels without a dimension of 1 that only one of them has.

    Raises:
        ConfigError: they still do not belong together.
    """
    scores, labels = predicted.scores, predicted.labels
    # Not of sequences of length 1, whose scores (samples, classes, 1) have a dimension more
    may_be_column = labels.ndim >= max(2, scores.ndim) and labels.shape[1] == 1
    if scores.ndim == labels.ndim + 1 and scores.shape[1] == 1:
        scores = scores.squeeze(1)
    elif may_be_column and scores.shape != labels.shape:
        labels = labels.squeeze(1)
    inner = scores.shape if scores.ndim == labels.ndim else (*scores.shape[:1], *scores.shape[2:])
    if tuple(inner) != tuple(labels.shape):
        raise ConfigError(
            f"Predictions {tuple(predicted.scores.shape)} and labels"
            f" {tuple(predicted.labels.shape)} do not belong together. Give scores (samples,"
            " classes, ...) and labels (samples, ...), or both in one shape."
        )
    return Predicted(scores, labels)


def classified(predicted: Predicted, from_logits: bool) -> Classified:
    """Read scores as those of classes.

    Scores of one dimension more than the labels are those of classes, along dimension 1; of as many
    dimensions those of class 1, which is predicted from a probability of one half on; integers are
    classes.

    Args:
        predicted: scores and labels that belong together.
        from_logits: whether scores are logits; False: they are probabilities.
    """
    scores, labels = predicted.scores, predicted.labels.flatten().long()
    if not scores.is_floating_point():
        classes = scores.flatten().long()
        return Classified(classes, labels, None, None, torch.ones_like(classes, dtype=torch.bool))
    if scores.ndim > predicted.labels.ndim:
        shares = scores.softmax(1) if from_logits else scores
        is_number = ~scores.isnan().any(1).flatten()
        confidence = shares.amax(1).flatten()
        return Classified(
            scores.argmax(1).flatten(), labels, confidence, scores.shape[1], is_number
        )
    share = (scores.sigmoid() if from_logits else scores).flatten()
    classes = (share > 0.5).long()
    return Classified(classes, labels, torch.maximum(share, 1 - share), 2, ~share.isnan())


@contextmanager
def canvas(width: float, height: float, dark: bool) -> Iterator[Figure]:
    """Give an empty figure, and within the block the style to draw it in."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context("dark_background" if dark else "default"):
        yield Figure(figsize=(width, height), layout="constrained")
