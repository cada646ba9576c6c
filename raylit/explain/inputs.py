"""A module as a function of the inputs to be explained: floating-point ones, images, embeddings."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raylit.errors import ConfigError
from raylit.runtime.batch import named_tensors, with_tensors

if TYPE_CHECKING:
    from raylit.core.module import LightningModule


class Explained(nn.Module):
    """A module as a function of the tensors that are explained, and then of the others.

    Args:
        module: the module.
        arguments: of its `forward`, of which the tensors are taken as an example.
        layers: names of embedding layers, the outputs of which are explained rather than the
            integers that go in.

    Attributes:
        names: of what is explained.
        values: it itself, in a tuple.
        others: the tensors that are not, in a tuple.
        inputs: all tensors in the arguments, under their names.

    Raises:
        ConfigError: there is nothing that has gradients, or no such layer.
    """

    def __init__(
        self,
        module: LightningModule,
        arguments: tuple[object, ...],
        names: Sequence[str],
        layers: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self.arguments = arguments
        tensors = [one for argument in arguments for one in named_tensors(argument).values()]
        self.inputs = dict(zip(names, tensors, strict=True))
        self.floats = [
            name for name, one in self.inputs.items() if one.is_floating_point() or is_image(one)
        ]
        self.layers = [find_layer(module, name) for name in layers]
        self.names = [*self.floats, *layers]
        if not self.names:
            raise ConfigError(_no_gradient(module, self.inputs))
        embedded = tuple(
            self._embed(layer, name) for layer, name in zip(self.layers, layers, strict=True)
        )
        self.values = tuple(_as_float(self.inputs[name]) for name in self.floats) + embedded
        self.others = tuple(one for name, one in self.inputs.items() if name not in self.floats)
        self._check_images()

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the first tensor of the output, (samples, ...)."""
        given = dict(zip(self.floats, tensors, strict=False))
        rest = iter(tensors[len(self.names) :])
        every = [given[name] if name in given else next(rest) for name in self.inputs]
        with self._embedded(tensors[len(self.floats) : len(self.names)]):
            output = self.module(*with_tensors(self.arguments, every))
        first = next(iter(named_tensors(output).values()))
        explained = [one for one in tensors[: len(self.names)] if one.requires_grad]
        if not explained or not torch.is_grad_enabled():
            return first
        if not first.requires_grad:
            raise ConfigError(
                f"The output of {type(self.module).__name__}.forward has no gradients: it is made"
                " under torch.no_grad, or of whole numbers. Return what they go through, or use"
                " method='feature_ablation', which needs none."
            )
        # an input that the model does not use gets zeros, where torch would raise
        return first + sum((0 * one).nan_to_num().sum() for one in explained)

    def _check_images(self) -> None:
        """Check that forward gives the same for images of bytes as for the same numbers as floats.

        Raises:
            ConfigError: it does not, as where a change of type also divides by 255.
        """
        images = [name for name in self.floats if not self.inputs[name].is_floating_point()]
        if not images:
            return
        with torch.no_grad():
            given = next(iter(named_tensors(self.module(*self.arguments)).values()))
            found = self(*self.values, *self.others)
        if not torch.allclose(given.double(), found.double(), rtol=1e-3, atol=1e-5):
            raise ConfigError(
                f"Trainer.explain: {images[0]} holds bytes (uint8), which have no gradient, and"
                f" forward of {type(self.module).__name__} makes something else of the same numbers"
                " as floats, as to_dtype(scale=True) does. Make floats of it before forward: in the"
                " data set, or in on_after_batch_transfer."
            )

    def _embed(self, layer: nn.Module, name: str) -> Tensor:
        """Return the output of a layer for the example."""
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, __, output: seen.append(output))
        try:
            with torch.no_grad():
                self.module(*self.arguments)
        finally:
            handle.remove()
        if len(seen) != 1 or not isinstance(seen[0], Tensor):
            raise ConfigError(
                f"Trainer.explain(layer={name!r}): forward calls it {len(seen)} times for a batch,"
                " but attributions are those of one output. Name a layer that is called once."
            )
        return seen[0].detach()

    @contextmanager
    def _embedded(self, outputs: tuple[Tensor, ...]) -> Iterator[None]:
        """Have the layers return these, in a block."""

        def giving(output: Tensor) -> Callable[..., Tensor]:
            return lambda _, __, ___: output

        handles = [
            layer.register_forward_hook(giving(output))
            for layer, output in zip(self.layers, outputs, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def is_image(tensor: Tensor) -> bool:
    """Tell whether a tensor holds images as bytes, which can be explained as numbers."""
    return tensor.dtype == torch.uint8 and tensor.ndim >= 3


def _as_float(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_floating_point() else tensor.float()


def find_layer(module: nn.Module, name: str) -> nn.Module:
    """Return the submodule of this name.

    Raises:
        ConfigError: there is none.
    """
    layers = dict(module.named_modules())
    if name not in layers or not name:
        near = difflib.get_close_matches(name, list(layers), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"Trainer.explain(layer={name!r}): {type(module).__name__} has no such layer.{hint} It"
            f" has: {', '.join(one for one in layers if one)}."
        )
    layer: nn.Module = layers[name]
    return layer


def last_convolution(module: nn.Module) -> str:
    """Return the name of the last convolution over images.

    Raises:
        ConfigError: there is none.
    """
    names = [name for name, one in module.named_modules() if isinstance(one, nn.Conv2d)]
    if not names:
        raise ConfigError(
            f"Trainer.explain(method='layer_gradcam'): {type(module).__name__} has no Conv2d. Name"
            " the layer whose output has a height and a width, layer='encoder', or take another"
            " method, such as 'integrated_gradients'."
        )
    last: str = names[-1]
    return last


def _no_gradient(module: nn.Module, inputs: dict[str, Tensor]) -> str:
    kinds = ", ".join(f"{name} ({str(one.dtype)[6:]})" for name, one in inputs.items())
    tables = [
        name
        for name, one in module.named_modules()
        if isinstance(one, (nn.Embedding, nn.EmbeddingBag))
    ]
    fix = (
        f"Name the embedding layer, whose output has: layer={tables[0]!r} (there is"
        f" {', '.join(tables)})."
        if tables
        else "Name the layer that makes numbers of them: layer='...'."
    )
    return (
        f"Trainer.explain: forward of {type(module).__name__} gets {kinds or 'no tensor'}, and"
        f" integers have no gradient. {fix}"
    )
