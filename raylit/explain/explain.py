"""The task of an explanation: each rank explains its piece of data, rank 0 puts them together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from raylit.core.export import input_names
from raylit.engine.run import in_eval_mode
from raylit.errors import ConfigError
from raylit.explain.explanation import Array, Explanation
from raylit.explain.inputs import Explained
from raylit.explain.methods import Method
from raylit.runtime import rng
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.engine.run import Run

LABELS = ("label", "labels", "target", "targets", "y")
SEED = 0  # of the random weights that an explanation is compared with


@dataclass
class BatchExplanation:
    """The explanation of one batch."""

    attributions: dict[str, Array]
    inputs: dict[str, Array]
    outputs: Array
    targets: Array
    deltas: Array | None


class Explain:
    """The task of `Trainer.explain`.

    Args:
        method: the method.
        target: `prediction`, `label`, or the index of an output.
        feature_names: of the columns of a table.
        sanity_check: whether to compare with random weights.
    """

    name = "explain"

    def __init__(
        self,
        method: Method,
        target: int | str,
        feature_names: list[str] | None = None,
        sanity_check: bool = False,
    ) -> None:
        self.method = method
        self.target = target
        self.feature_names = feature_names
        self.sanity_check = sanity_check

    def __call__(self, run: Run) -> Explanation | None:
        """Explain all samples; returns them on rank 0, in the order of the data."""
        run.stage = "validate"
        run.module.attach_log(None)
        parts: list[BatchExplanation] = []
        randomized: float | None = None
        with in_eval_mode(run.module):
            for batch, _, dataloader_idx in run.load("val", in_order=True):
                transfer = run.calls.transfer
                batch = batch if transfer is None else transfer(batch, dataloader_idx)
                parts.append(self.explain(run.module, batch))
                if len(parts) == 1:
                    self._check_names(parts[0])
                if self.sanity_check and len(parts) == 1:
                    randomized = self._correlation(run.module, batch, parts[0])
        ranks = run.world.gather_object((parts, randomized)) if run.world.size > 1 else None
        if run.world.size > 1 and ranks is None:
            return None
        for more, _ in (ranks or [])[1:]:
            parts += more
        return self.together(parts, randomized)

    def _check_names(self, part: BatchExplanation) -> None:
        """See that an input has as many features as there are names."""
        sizes = {name: one[:1].size for name, one in part.attributions.items()}
        if self.feature_names is not None and len(self.feature_names) not in sizes.values():
            told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
            raise ConfigError(
                f"feature_names names {len(self.feature_names)} features, but {told}. Name each."
            )

    def explain(self, module: LightningModule, batch: object) -> BatchExplanation:
        """Return the attributions of one batch, which is on the module's device.

        Raises:
            ConfigError: the method does not fit the model, or the target is out of range.
        """
        arguments = module.forward_inputs(batch)
        names = input_names(module, arguments)
        function = Explained(module, arguments, names, self.method.embeddings)
        frozen = [one for one in module.parameters() if one.requires_grad]
        # the backward pass of a recurrent layer in eval mode is missing in cuDNN alone
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            with torch.no_grad():
                output = function(*function.values, *function.others)
            target = self._target(output, batch, len(arguments))
            for parameter in frozen:  # nobody wants their gradients
                parameter.requires_grad = False
            try:
                found, deltas = self.method.attribute(function, target)
            finally:
                for parameter in frozen:
                    parameter.requires_grad = True
        attributions = {
            name: one.sum(-1) if name in self.method.embeddings and one.ndim > 2 else one
            for name, one in zip(function.names, found, strict=True)
        }
        return BatchExplanation(
            {name: _array(one) for name, one in attributions.items()},
            {name: _array(one) for name, one in function.inputs.items()},
            _array(output),
            np.empty(0, np.int64) if target is None else _array(target),
            None if deltas is None else _array(deltas),
        )

    def together(
        self, parts: list[BatchExplanation], randomized: float | None = None
    ) -> Explanation:
        """Return the explanation of all batches.

        Raises:
            ConfigError: there is none.
        """
        if not parts:
            raise ConfigError("There is nothing to explain: the validation data has no batch.")
        if randomized is not None and randomized > 0.9:
            warn(
                f"The attributions of {self.method.name} are almost those of the same model with"
                f" random weights (rank correlation {randomized:.2f}): they show the input rather"
                " than what the model has learned. Take another method."
            )

        def joined(arrays: list[Array]) -> Array:
            if len({one.shape[1:] for one in arrays}) > 1:
                raise ConfigError(
                    "Batches differ in more than the number of samples"
                    f" ({', '.join(str(one.shape) for one in arrays[:3])}). Have the collate"
                    " function pad to one length, or explain one batch: limit_val_batches=1."
                )
            return np.concatenate(arrays)

        first = parts[0]
        deltas = [one.deltas for one in parts if one.deltas is not None]
        return Explanation(
            self.method.name,
            {
                name: joined([one.attributions[name] for one in parts])
                for name in first.attributions
            },
            {name: joined([one.inputs[name] for one in parts]) for name in first.inputs},
            joined([one.outputs for one in parts]),
            joined([one.targets for one in parts]),
            np.concatenate(deltas) if deltas else None,
            self.feature_names,
            randomized,
        )

    def _target(self, output: Tensor, batch: object, num_arguments: int) -> Tensor | None:
        """Return for each sample the index of the output that is explained."""
        if output.ndim == 1:
            return None
        if output.ndim != 2:
            raise ConfigError(
                f"Trainer.explain: forward returns {tuple(output.shape)}, but what is explained is"
                " one number of each sample, so (samples,) or (samples, outputs). Explain with a"
                " module whose forward returns that."
            )
        classes = output.shape[1]
        if self.target == "prediction":
            return output.argmax(1)
        if self.target == "label":
            labels = labels_of(batch, num_arguments)
            if labels is None:
                raise ConfigError(
                    f"Trainer.explain(target='label'): a batch, a {type(batch).__name__}, has no"
                    " labels. They stand behind the inputs of forward, or are called"
                    f" {', '.join(LABELS)}. Give target='prediction', or the index of an output."
                )
            target = torch.as_tensor(labels, device=output.device)
        else:
            target = torch.full((len(output),), int(self.target), device=output.device)
        if target.shape != (len(output),) or target.is_floating_point():
            raise ConfigError(
                f"Trainer.explain(target='label'): the labels are {tuple(target.shape)} of"
                f" {target.dtype}, but a target is one integer for each sample. Give target=0, or"
                " target='prediction'."
            )
        wrong = target[(target < 0) | (target >= classes)]
        if len(wrong):
            raise ConfigError(
                f"Trainer.explain(target={self.target!r}): there is no output {int(wrong[0])},"
                f" forward returns {classes} of them. Give one from 0 to {classes - 1}."
            )
        return target.long()

    def _correlation(self, module: LightningModule, batch: object, part: BatchExplanation) -> float:
        """Return the rank correlation of sizes with those that random weights give."""
        with rng.isolated():
            torch.manual_seed(SEED)
            other = self.explain(randomized(module), batch)
        sizes = [
            np.abs(np.concatenate([one.reshape(-1) for one in found.attributions.values()]))
            for found in (part, other)
        ]
        return _rank_correlation(sizes[0], sizes[1])


def randomized(module: LightningModule) -> LightningModule:
    """Return a copy of a module with random weights."""
    other = copy.deepcopy(module)
    fresh: set[int] = set()
    for layer in other.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
            fresh.update(id(one) for one in layer.parameters(recurse=False))
    for parameter in other.parameters():
        if id(parameter) not in fresh:
            nn.init.normal_(parameter.data, std=0.1)
    return other.eval()


def labels_of(batch: object, num_arguments: int) -> object:
    """Return the labels in a batch, None if there are none that can be told.

    Args:
        batch: a list or tuple has them behind the inputs of `forward`, others under one of LABELS.
        num_arguments: how many inputs `forward` takes of it.
    """
    if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
        return batch[num_arguments] if len(batch) > num_arguments else None
    for name in LABELS:
        found = batch.get(name) if isinstance(batch, Mapping) else getattr(batch, name, None)
        if found is not None:
            return found
    return None


def _rank_correlation(one: Array, other: Array) -> float:
    """Return Spearman's coefficient over the values that are not 0 in both.

    Values that are 0 in both, such as the background of an image, would make any two alike.
    """
    either = (one > 0) | (other > 0)
    if either.sum() < 2:
        return 0.0
    ranks = [_ranks(values[either]) for values in (one, other)]
    if min(float(np.ptp(values)) for values in ranks) == 0:  # all are equal
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Array) -> Array:
    """Return the rank of each value; equal ones share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def _array(tensor: Tensor) -> Array:
    found = tensor.detach().cpu()
    return found.float().numpy() if found.is_floating_point() else found.numpy()
