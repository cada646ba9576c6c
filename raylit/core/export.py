"""Taking a module out of raylit: into formats that run without it."""

from __future__ import annotations

import importlib.util
import inspect
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raylit.errors import ConfigError, MissingPackageError
from raylit.runtime.batch import move_to

if TYPE_CHECKING:
    from io import BytesIO


class Exportable(nn.Module):
    """Gives `to_onnx` to LightningModule."""

    example_input_array: Any

    @torch.no_grad()
    def to_onnx(
        self,
        file_path: str | os.PathLike[str] | BytesIO | None = None,
        input_sample: Any = None,
        **kwargs: Any,
    ) -> Any:
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
