"""A model in MLflow's own format: a folder that `mlflow.pyfunc` loads, serves and registers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


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
    """Return what `mlflow.pyfunc` predicts with the model in a folder."""
    import mlflow.pyfunc

    model = mlflow.pyfunc.load_model(folder)

    def predict(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = model.predict({name: tensor.numpy() for name, tensor in tensors.items()})
        return {name: torch.as_tensor(value) for name, value in found.items()}

    return predict
