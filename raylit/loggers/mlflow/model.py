"""A model in MLflow's own format: a folder that `mlflow.pyfunc` loads, serves and registers."""

from __future__ import annotations

import importlib.metadata
import inspect
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raylit.runtime.batch import named_tensors
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

    from raylit.core.module import LightningModule


def save_onnx(
    onnx_path: str, folder: str, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> None:
    """Write a model of MLflow with the program of an ONNX file in it.

    Args:
        onnx_path: the file.
        folder: to be made.
        inputs: an example of each input, from which the signature is taken.
        outputs: likewise.
    """
    import mlflow.onnx
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(tensors: Mapping[str, Tensor]) -> Schema:
        return Schema(
            [
                TensorSpec(tensor.numpy().dtype, (-1, *tensor.shape[1:]), name)
                for name, tensor in tensors.items()
            ]
        )

    mlflow.onnx.save_model(
        onnx.load(onnx_path),
        folder,
        signature=ModelSignature(schema(inputs), schema(outputs)),
        onnx_execution_providers=["CPUExecutionProvider"],
    )


def pyfunc(folder: str) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """Return a function that predicts with the model in a folder, by `mlflow.pyfunc`."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(folder)

    def predict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = model.predict({name: tensor.numpy() for name, tensor in tensors.items()})
        return {name: torch.as_tensor(value) for name, value in found.items()}

    return predict


class _Forward(nn.Module):
    """The module's output for one tensor, in the state of evaluation."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module, or the first tensor in it."""
        found = self.module(x)
        if isinstance(found, Tensor):
            return found
        return next(iter(named_tensors(found).values()))


def save_final(module: LightningModule, inputs: tuple[object, ...], folder: str) -> str:
    """Write a module as a model of MLflow.

    As a program of torch.export, which needs neither its class nor raylit, if `forward` takes one
    tensor and can be exported; else pickled, with the file of its class.

    Args:
        module: on the CPU.
        inputs: the arguments of `forward` for some samples.
        folder: to be made.

    Returns:
        `pt2` or `pickle`.
    """
    import mlflow.pytorch

    tensors = list(named_tensors(inputs).values())
    was_training = module.training
    module.eval()
    try:
        if len(inputs) == 1 and isinstance(inputs[0], Tensor) and inputs[0].ndim:
            try:
                _save_program(module, inputs[0], folder)
            except Exception as error:
                first = str(error).strip().partition("\n")[0]
                info(f"The final model cannot be exported ({first}); it is pickled.")
                shutil.rmtree(folder, ignore_errors=True)
            else:
                return "pt2"
        with torch.no_grad():
            output = next(iter(named_tensors(module(*inputs)).values()))
        source = inspect.getsourcefile(type(module))
        mlflow.pytorch.save_model(
            module,
            folder,
            signature=_signature(tensors[0], output) if len(tensors) == 1 else None,
            code_paths=[source] if source is not None else None,
            pip_requirements=_requirements("raylit"),
            serialization_format="pickle",
        )
        return "pickle"
    finally:
        module.train(was_training)


def _save_program(module: LightningModule, example: Tensor, folder: str) -> None:
    import mlflow.pytorch

    if len(example) == 1:  # torch takes a dimension of 1 for one that can never be another
        example = torch.cat([example] * 2)
    function = _Forward(module).eval()
    with torch.no_grad():
        output = function(example)
        mlflow.pytorch.save_model(
            function,
            folder,
            signature=_signature(example, output),
            input_example=example.numpy(),
            pip_requirements=_requirements(),
            serialization_format="pt2",
        )


def _signature(example: Tensor, output: Tensor) -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(tensor: Tensor) -> Schema:
        return Schema([TensorSpec(tensor.numpy().dtype, (-1, *tensor.shape[1:]))])

    return ModelSignature(schema(example), schema(output))


def _requirements(*more: str) -> list[str]:
    names = ("mlflow", "torch", "numpy", *more)
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]
