"""captum's methods, each called as its kind wants to be."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raylit.errors import ConfigError, did_you_mean
from raylit.explain.inputs import Explained, find_layer, last_convolution
from raylit.runtime.aliases import Arguments

if TYPE_CHECKING:
    from types import ModuleType

WINDOWS = 8  # along each side of an image, when parts of it are hidden

TARGETS = ("prediction", "label")  # beside an index
METHODS = (
    "integrated_gradients",
    "saliency",
    "layer_gradcam",
    "occlusion",
    "feature_ablation",
    "permutation",
)


@dataclass(frozen=True)
class Method:
    """A method with its settings.

    Attributes:
        kind: one of METHODS; or an object of captum, or what makes one of a function, such as
            `captum.attr.DeepLift` or `lambda f: NoiseTunnel(Saliency(f))`.
        layer: the embedding layers to explain in the place of integers; for `layer_gradcam` the
            layer whose output is looked at.
        baselines: what stands for nothing, for integrated gradients and what hides parts.
        num_steps: of the path of integrated gradients.
        internal_batch_size: samples in the model at once, for integrated gradients.
    """

    kind: object
    layer: tuple[str, ...] = ()
    baselines: float | None = None
    num_steps: int = 50
    internal_batch_size: int = 256

    @property
    def name(self) -> str:
        """How it is called in titles."""
        if isinstance(self.kind, str):
            return self.kind
        return str(getattr(self.kind, "__name__", type(self.kind).__name__))

    @property
    def embeddings(self) -> tuple[str, ...]:
        """The layers whose outputs are explained."""
        return () if self.kind == "layer_gradcam" else self.layer

    def attribute(
        self, function: Explained, target: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Return the attributions of the inputs of `function`, and convergence deltas, if any."""
        import captum.attr as captum

        given: Arguments = {
            "target": target,
            "additional_forward_args": function.others or None,
        }
        # captum would set it itself, and warn
        values = tuple(one.detach().requires_grad_() for one in function.values)
        if self.kind == "integrated_gradients":
            found, deltas = captum.IntegratedGradients(function).attribute(
                values,
                baselines=self.baselines,
                n_steps=self.num_steps,
                internal_batch_size=max(self.internal_batch_size, len(values[0])),
                return_convergence_delta=True,
                **given,
            )
            return found, deltas
        if self.kind == "saliency":
            return captum.Saliency(function).attribute(values, abs=False, **given), None
        if self.kind == "layer_gradcam":
            return self._gradcam(captum, function, given), None
        if self.kind == "occlusion":
            windows = tuple(_window(one) for one in values)
            found = captum.Occlusion(function).attribute(
                values,
                sliding_window_shapes=windows,
                strides=windows,
                baselines=self.baselines,
                **given,
            )
            return found, None
        masks = _groups(values)
        if self.kind == "feature_ablation":
            ablation = captum.FeatureAblation(function)
            found = ablation.attribute(
                values, feature_mask=masks, baselines=self.baselines, **given
            )
            return found, None
        if self.kind == "permutation":
            permutation = captum.FeaturePermutation(function, perm_func=_shifted)
            return permutation.attribute(values, feature_mask=masks, **given), None
        return self._of_captum(function, given), None

    def _gradcam(
        self, captum: ModuleType, function: Explained, given: Arguments
    ) -> tuple[Tensor, ...]:
        name = self.layer[0] if self.layer else last_convolution(function.module)
        layer = find_layer(function.module, name)
        found = captum.LayerGradCam(function, layer).attribute(function.values, **given)
        images = [one for one in function.values if one.ndim == 4]
        if found.ndim != 4 or not images:
            raise ConfigError(
                f"Trainer.explain(method='layer_gradcam', layer={name!r}): its output is"
                f" {tuple(found.shape)}, with no height and width. Name a convolution."
            )
        enlarged = captum.LayerAttribution.interpolate(found, images[0].shape[2:], "bilinear")
        return tuple(
            enlarged if one is images[0] else torch.zeros_like(one) for one in function.values
        )

    def _of_captum(self, function: Explained, given: Arguments) -> tuple[Tensor, ...]:
        kind: Any = self.kind
        if callable(getattr(kind, "attribute", None)) and not isinstance(kind, type):
            own = copy.copy(kind)
            own.forward_func = function
        else:
            own = kind(function)
        takes = inspect.signature(own.attribute).parameters
        if "additional_forward_args" not in takes and "kwargs" not in takes:
            given = {"target": given["target"]}
        found = own.attribute(function.values, **given)
        return found if isinstance(found, tuple) else (found,)


def check(kind: object, layer: Sequence[str]) -> None:
    """Check the name of a method, before any work.

    Raises:
        ConfigError: there is none of this name.
    """
    if isinstance(kind, str) and kind not in METHODS:
        raise ConfigError(
            f"Trainer.explain(method={kind!r}) is not known.{did_you_mean(kind, METHODS)} Use one"
            f" of: {', '.join(METHODS)}; or an object of captum, such as captum.attr.DeepLift."
        )
    if not isinstance(kind, str) and not callable(getattr(kind, "attribute", None) or kind):
        raise ConfigError(
            f"Trainer.explain(method={kind!r}) is neither a name nor an object of captum. Use one"
            f" of: {', '.join(METHODS)}."
        )
    if kind == "layer_gradcam" and len(layer) > 1:
        raise ConfigError(
            f"Trainer.explain(method='layer_gradcam') looks at one layer, not {len(layer)}."
        )


def check_target(target: int | str, owner: str) -> int | str:
    """Return which output is explained, digits as a number.

    Raises:
        ConfigError: it is neither a known word nor an index; `owner` took it.
    """
    if isinstance(target, str) and target.lstrip("-").isdigit():  # of a flag
        return int(target)
    if isinstance(target, bool) or (isinstance(target, str) and target not in TARGETS):
        raise ConfigError(
            f"{owner}(target={target!r}) is not known. Use 'prediction', 'label', or the index of"
            " an output, such as 0."
        )
    return target


def _window(value: Tensor) -> tuple[int, ...]:
    """Return the shape of the part of a sample that is hidden at a time."""
    shape = value.shape[1:]
    if len(shape) == 3:  # an image: all of its channels
        return (shape[0], *(max(1, round(side / WINDOWS)) for side in shape[1:]))
    return (1, *shape[1:])  # one feature of a table, one position of a sequence


def _groups(values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return for each input which of its numbers are hidden together, by their group's number."""
    masks: list[Tensor] = []
    first = 0
    for value in values:
        shape = value.shape[1:]
        if len(shape) == 3:  # the channels of a square of an image
            rows, columns = (
                (torch.arange(side) * WINDOWS // side if side > WINDOWS else torch.arange(side))
                for side in shape[1:]
            )
            groups = rows[:, None] * WINDOWS + columns[None]
            groups = groups.unique(return_inverse=True)[1].reshape(1, *shape[1:])
        else:
            groups = torch.arange(shape[0] if shape else 1).reshape(-1, *[1] * (len(shape) - 1))
        groups = (groups + first).to(value.device)
        first = int(groups.max()) + 1
        masks.append(groups.expand(1, *shape).contiguous())
    return tuple(masks)


def _shifted(value: Tensor, mask: Tensor) -> Tensor:
    """Give each sample the features in `mask` of the sample before it in the batch.

    Not drawn: the same batch gives the same attributions, wherever it is explained.
    """
    return torch.where(mask.expand_as(value).bool(), value.roll(1, 0), value)
