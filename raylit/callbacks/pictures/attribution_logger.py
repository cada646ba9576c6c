"""AttributionLogger: pictures of the inputs that a model looks at, as it learns."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from raylit.callbacks.pictures.chosen import Chosen, Sample, fingerprints, values_of
from raylit.callbacks.pictures.picture import Picture
from raylit.errors import ConfigError, MissingPackageError
from raylit.explain import Explain, Explanation
from raylit.explain.methods import Method, check, check_target
from raylit.runtime import rng
from raylit.runtime.aliases import Batch, StepOutput
from raylit.runtime.batch import named_tensors, size_of, with_tensors

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class AttributionLogger(Picture):
    """Draws how much each input speaks for an output, for the same validation samples each time.

    This shows where the model looks as it learns. The samples are drawn by their content, so they
    are the same in every epoch, after a resume and on any number of ranks. Rank 0 explains them,
    with the weights that are validated; training is not changed by it.

    Args:
        method: as in `Trainer.explain`.
        num_samples: how many samples.
        every_n_epochs: in which epochs of a fit.
        target: `prediction`, `label` or the index of an output.
        layer: as in `Trainer.explain`: the embedding layers, or the convolution.
        baselines: a number that stands for nothing; None: 0.
        num_steps: of the path of integrated gradients.
        internal_batch_size: samples in the model at once, which bounds the memory.
        feature_names: of the columns of a table.
        seed: of the choice of samples.
        name: under which the loggers keep it.
        dark: whether the background is dark.

    Attributes:
        explanation: the last one, on rank 0.

    Raises:
        ConfigError: an argument is out of range, there is no logger, the model is sharded, or the
            method does not fit it.
        MissingPackageError: captum is not installed.

    Example:
        >>> trainer = Trainer(
        ...     callbacks=[AttributionLogger("saliency", every_n_epochs=5)],
        ...     logger=CSVLogger("logs"),
        ... )
    """

    def __init__(
        self,
        method: str | Callable[..., object] = "integrated_gradients",
        num_samples: int = 6,
        every_n_epochs: int = 1,
        target: int | str = "prediction",
        layer: str | Sequence[str] = (),
        baselines: float | None = None,
        num_steps: int = 50,
        internal_batch_size: int = 256,
        feature_names: Sequence[str] | None = None,
        seed: int = 0,
        name: str = "attributions",
        dark: bool = False,
    ) -> None:
        super().__init__(name, every_n_epochs, dark)
        for what, value in (
            ("num_samples", num_samples),
            ("num_steps", num_steps),
            ("internal_batch_size", internal_batch_size),
        ):
            if value < 1:
                raise ConfigError(f"AttributionLogger({what}={value}) must be 1 or more.")
        layers = (layer,) if isinstance(layer, str) else tuple(layer)
        check(method, layers)
        target = check_target(target, "AttributionLogger")
        self.method = Method(method, layers, baselines, num_steps, internal_batch_size)
        self.target = target
        self.feature_names = None if feature_names is None else list(feature_names)
        self.num_samples = num_samples
        self.seed = seed
        self.explanation: Explanation | None = None
        self._chosen: Chosen | None = None
        self._outline: object = None  # a batch without samples

    def setup(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            return
        if importlib.util.find_spec("captum") is None:
            raise MissingPackageError("captum", "AttributionLogger", "explain")
        trainer.strategy.refuse_if_sharded("AttributionLogger")

    def begin(self) -> None:
        self._chosen = Chosen(self.num_samples)
        self._outline = None

    def see(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        dataloader_idx: int,
    ) -> None:
        if self._chosen is None or dataloader_idx > 0:
            return
        size = size_of(batch, check=False)
        values = values_of(batch, size)
        if self._outline is None:
            empty = [
                one[:0].cpu() if name in values else one
                for name, one in named_tensors(batch).items()
            ]
            self._outline = with_tensors(batch, empty)
        content = fingerprints(values, size, self.seed)
        self._chosen.offer(content, content, values, {})

    def draw(self, trainer: RunningTrainer, pl_module: LightningModule, name: str) -> None:
        if self._chosen is None:
            return
        samples = self._chosen.gathered(trainer.world)
        outlines = trainer.world.all_gather_object(self._outline)
        outline = next((one for one in outlines if one is not None), None)
        self._chosen = self._outline = None
        if not samples or not trainer.is_global_zero:
            return
        # The batches of a validation outside of fit are tensors that no gradient can go through
        with torch.inference_mode(False), rng.isolated():
            batch = _batch(outline, samples, pl_module.device)
            task = Explain(self.method, self.target, self.feature_names)
            explanation = task.together([task.explain(pl_module, batch)])
        self.explanation = explanation
        shown = range(explanation.num_samples)
        pl_module.log_figure(name, explanation.plot(samples=[*shown], dark=self.dark))


def _batch(outline: object, samples: Sequence[Sample], device: torch.device) -> object:
    """Return a batch of samples, as a loader would have given it."""
    first = samples[0].values
    alike = [one for one in samples if _shapes(one) == _shapes(samples[0])]
    tensors: list[Tensor] = []
    for name, empty in named_tensors(outline).items():
        if name not in first:
            tensors.append(empty.to(device))
            continue
        rows = [torch.as_tensor(one.values[name]) for one in alike]
        tensors.append(torch.stack(rows).to(device, empty.dtype))
    return with_tensors(outline, tensors)


def _shapes(sample: Sample) -> list[tuple[int, ...]]:
    return [one.shape for one in sample.values.values()]
