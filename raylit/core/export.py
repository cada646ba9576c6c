"""Taking a module out of raylit: into formats that run without it."""

from __future__ import annotations

import importlib.util
import inspect
import os
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import nn

from raylit.errors import ConfigError, MissingPackageError
from raylit.runtime.aliases import Batch, ForwardInput
from raylit.runtime.batch import move_to, named_tensors, parts_of

if TYPE_CHECKING:
    from io import BytesIO


class Exportable(nn.Module):
    """Gives `to_onnx` and `forward_inputs` to LightningModule."""

    example_input_array: ForwardInput

    def forward_inputs(self, batch: Batch) -> tuple[ForwardInput, ...]:
        """Return the arguments of `forward` in a batch, for `Trainer.export` and `Trainer.explain`.

        Override it if `forward` takes something else of a batch. As it is: the whole batch, if
        `forward` takes one argument that is called `batch`; of a list or tuple the first items, as
        many as `forward` needs; of a dict or an object the items that are named as its arguments,
        or the whole if it takes one argument and none is named so.

        Raises:
            ConfigError: there is no `forward`, or an argument of it is not in the batch.

        Example:
            >>> class Net(LightningModule):
            ...     def forward(self, image, text): ...
            ...
            ...     def forward_inputs(self, batch):
            ...         return batch["image"], batch["tokens"]["ids"]
        """
        own = type(self).__name__
        if type(self).forward is nn.Module.forward:
            raise ConfigError(
                f"{own} has no forward(), which is what is exported and explained. Define it:"
                " def forward(self, x): return self.net(x)."
            )
        wanted = [
            parameter
            for parameter in inspect.signature(self.forward).parameters.values()
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        ]
        needed = [one.name for one in wanted if one.default is one.empty]
        if [one.name for one in wanted] == ["batch"]:
            return (batch,)
        if isinstance(batch, (list, tuple)) and not hasattr(batch, "_fields"):
            given = tuple(batch[: max(len(needed), 1)])
            missing = needed[len(given) :]
        else:
            parts = _named_parts(batch)
            given = ()
            for one in wanted:  # up to the first that may be left out, and is
                if one.name not in parts:
                    break
                given = (*given, parts[one.name])
            missing = [name for name in needed if name not in parts]
            if not given and len(needed) <= 1:
                return (batch,)
        if missing:
            raise ConfigError(
                f"{own}.forward takes {', '.join(needed)}, but a batch, a {type(batch).__name__}"
                f" with {', '.join(_named_parts(batch)) or 'no named items'}, has no"
                f" {', '.join(missing)}. Say which items of a batch forward takes: def"
                f" forward_inputs(self, batch): return batch[...], batch[...] in {own}."
            )
        return given

    def to_torchscript(self, *args: object, **kwargs: object) -> NoReturn:
        """Refused: TorchScript is deprecated in torch.

        Raises:
            ConfigError: always; names what to use.
        """
        raise ConfigError(
            f"{type(self).__name__}.to_torchscript: TorchScript is deprecated in torch, and raylit"
            " does not write it. Use trainer.export(model, 'model.pt2', dataloaders=...), whose"
            " file torch.export.load reads without the code of the model, or"
            " model.to_onnx('model.onnx', input_sample)."
        )

    @torch.no_grad()
    def to_onnx(
        self,
        file_path: str | os.PathLike[str] | BytesIO | None = None,
        input_sample: ForwardInput = None,
        **kwargs: Any,
    ) -> torch.onnx.ONNXProgram | None:
        """Export `forward` to ONNX, as it is in the present mode.

        Call `eval()` before to leave out dropout.

        Args:
            file_path: the file to write, if any.
            input_sample: an input of `forward`, a tuple for several; None takes
                `example_input_array`.
            kwargs: handed to `torch.onnx.export`, such as `input_names`.

        Returns:
            What `torch.onnx.export` returns.

        Raises:
            MissingPackageError: the package onnx is not installed; with `dynamo=True`, the default
                of newer torch, onnxscript.
            ConfigError: there is no input.

        Example:
            >>> model.eval().to_onnx("model.onnx", torch.randn(1, 64))
        """
        by_dynamo = kwargs.get(
            "dynamo", inspect.signature(torch.onnx.export).parameters["dynamo"].default
        )
        for package in ("onnx", "onnxscript") if by_dynamo else ("onnx",):
            if importlib.util.find_spec(package) is None:
                raise MissingPackageError(package, f"{type(self).__name__}.to_onnx")
        sample = self.example_input_array if input_sample is None else input_sample
        if sample is None:
            raise ConfigError(
                f"{type(self).__name__}.to_onnx needs an input: give input_sample, or set"
                " example_input_array in the module."
            )
        device = next((tensor.device for tensor in self.parameters()), torch.device("cpu"))
        path: Any = os.fspath(file_path) if isinstance(file_path, os.PathLike) else file_path
        return torch.onnx.export(self, move_to(sample, device), path, **kwargs)


def input_names(module: nn.Module, arguments: tuple[object, ...]) -> list[str]:
    """Return names for the tensors in arguments of `forward`: those of its parameters and keys.

    Example:
        >>> input_names(model, (torch.zeros(4, 32),))
        ['x']
    """
    parameters = list(inspect.signature(module.forward).parameters)
    names: list[str] = []
    for parameter, argument in zip(parameters, arguments, strict=False):
        found = named_tensors(argument)
        names += [parameter if name == "input" else name.replace(".", "_") for name in found]
    return names


def _named_parts(batch: object) -> dict[str, object]:
    return {} if isinstance(batch, torch.Tensor) else dict(parts_of(batch))
