"""The kinds of files: how each is written, and how it is read again to be run."""

from __future__ import annotations

import copy
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from raylit.errors import ConfigError, MissingPackageError
from raylit.export.failure import explained, explained_operator

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from raylit.export.export import OfTensors

Function = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
MAX_PROTOBUF_BYTES = 2**31 - 2**20  # what one ONNX file can hold; beyond, weights lie beside it


class Format(Protocol):
    """A kind of file that a model can be exported to.

    Attributes:
        suffix: of the file's name.
        packages: needed beside torch.
        fixes_lengths: whether it takes inputs of other shapes only if it is the number of samples
            in which they differ.
    """

    suffix: str
    packages: tuple[str, ...]
    fixes_lengths: bool

    def write(self, function: OfTensors, example: tuple[Tensor, ...], path: str) -> None:
        """Write `function` to `path`, for any number of samples.

        Raises:
            ConfigError: it cannot be exported; the text names the operator and the line.
        """

    def read(self, path: str, function: OfTensors) -> Function:
        """Return the function that the file computes."""


class Program:
    """`pt2`: a program of torch.export, run without the class; `torch.export.load` reads it."""

    suffix = ".pt2"
    packages: tuple[str, ...] = ()
    fixes_lengths = True

    def write(self, function: OfTensors, example: tuple[Tensor, ...], path: str) -> None:
        """Write the program."""
        torch.export.save(program_of(function, example), path)

    def read(self, path: str, function: OfTensors) -> Function:
        """Return the program."""
        loaded = torch.export.load(path).module()
        return lambda tensors: tuple(loaded(*tensors))


class Onnx:
    """`onnx`: the format that onnxruntime and others run."""

    suffix = ".onnx"
    packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
    fixes_lengths = True

    def write(self, function: OfTensors, example: tuple[Tensor, ...], path: str) -> None:
        """Write the file."""
        program = program_of(function, example)
        size = sum(tensor.nbytes for tensor in function.state_dict().values())
        with explained_operator(function.module, program, "onnx"), _quiet():
            torch.onnx.export(
                program,
                f=path,
                input_names=function.names,
                output_names=function.output_names,
                dynamo=True,
                verbose=False,
                external_data=size > MAX_PROTOBUF_BYTES,
            )

    def read(self, path: str, function: OfTensors) -> Function:
        """Return the function that onnxruntime computes by the file, on the CPU."""
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]

        def compute(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            given = dict(zip(function.names, (tensor.numpy() for tensor in tensors), strict=True))
            # an input that nothing depends on is none of the file
            found = session.run(None, {name: given[name] for name in names})
            return tuple(torch.as_tensor(one) for one in found)

        return compute


class Weights:
    """`safetensors`: the weights alone, under their names in the module's `state_dict`."""

    suffix = ".safetensors"
    packages: tuple[str, ...] = ("safetensors",)
    fixes_lengths = False

    def write(self, function: OfTensors, example: tuple[Tensor, ...], path: str) -> None:
        """Write the weights; those that share memory once."""
        from safetensors.torch import save_model

        kind = type(function.module)
        metadata = {"format": "pt", "class": f"{kind.__module__}.{kind.__qualname__}"}
        save_model(function.module, path, metadata=metadata)

    def read(self, path: str, function: OfTensors) -> Function:
        """Return a copy of the module with these weights, and none of its own."""
        from safetensors.torch import load_model

        fresh = copy.deepcopy(function)
        for tensor in fresh.state_dict().values():
            tensor.zero_()
        load_model(fresh.module, path)
        return lambda tensors: fresh(*tensors)


class MLflowModel(Onnx):
    """`mlflow`: a folder that MLflow serves and registers, with the ONNX form in it.

    Needs neither the class nor raylit to be loaded, and no pickle.
    """

    suffix = "_mlflow"
    packages = Onnx.packages

    def write(self, function: OfTensors, example: tuple[Tensor, ...], path: str) -> None:
        """Write the folder."""
        from raylit.loggers.mlflow.model import save_onnx

        with tempfile.TemporaryDirectory() as scratch:
            onnx_path = os.path.join(scratch, "model.onnx")
            super().write(function, example, onnx_path)
            inputs = dict(zip(function.names, example, strict=True))
            outputs = dict(zip(function.output_names, function(*example), strict=True))
            save_onnx(onnx_path, path, inputs, outputs)

    def read(self, path: str, function: OfTensors) -> Function:
        """Return the function that predicts by `mlflow.pyfunc`."""
        from raylit.loggers.mlflow.model import pyfunc

        predict = pyfunc(path)

        def compute(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            found = predict(dict(zip(function.names, tensors, strict=True)))
            return tuple(found[name] for name in function.output_names)

        return compute


FORMATS: dict[str, Format] = {
    "onnx": Onnx(),
    "pt2": Program(),
    "safetensors": Weights(),
    "mlflow": MLflowModel(),
}


def check_packages(format: str) -> None:
    """Check that the packages that a format needs are installed.

    Raises:
        MissingPackageError: it is not.
    """
    for package in FORMATS[format].packages:
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(package, f"The format {format!r} of an export", "export")


def num_samples(tensors: tuple[Tensor, ...]) -> int | None:
    """Return the number of samples in inputs: the first dimension of the first that has one."""
    return next((tensor.shape[0] for tensor in tensors if tensor.ndim), None)


def is_of_samples(tensor: Tensor, size: int | None) -> bool:
    """Tell whether an input has a row for each of the `size` samples, rather than a fixed shape."""
    return tensor.ndim > 0 and tensor.shape[0] == size


def program_of(function: OfTensors, example: tuple[Tensor, ...]) -> ExportedProgram:
    """Return `function` as a program of torch.export, for any number of samples.

    Raises:
        ConfigError: something in it cannot be exported.
    """
    size = num_samples(example)
    batch = torch.export.Dim("batch")
    shapes = [{0: batch} if is_of_samples(tensor, size) else None for tensor in example]
    if size is None:
        raise ConfigError("forward takes no tensor with a dimension of samples.")
    with explained(function.module), _quiet():
        return torch.export.export(
            function, example, dynamic_shapes={"tensors": tuple(shapes)}, strict=False
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings that exporters give of their own parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        registration = logging.getLogger("torch.onnx._internal.exporter._registration")
        level = registration.level
        registration.setLevel(logging.ERROR)  # it warns of each operator of torchvision
        try:
            yield
        finally:
            registration.setLevel(level)
