"""An export's task: take inputs of validation batches, write the file, compare with the module."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raylit.core.export import input_names
from raylit.engine.run import in_eval_mode
from raylit.errors import ConfigError
from raylit.export.formats import FORMATS, is_of_samples, num_samples
from raylit.runtime.batch import move_to, named_tensors, with_tensors

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.engine.run import Run


@dataclass(frozen=True)
class ExportReport:
    """An export, and how near its numbers are to the module's.

    Attributes:
        path: the file, or for `mlflow` the folder.
        format: `onnx`, `pt2`, `safetensors` or `mlflow`.
        inputs: names of the inputs, in their order, with shape and dtype of the first batch.
        num_samples: validation samples that were compared.
        batch_sizes: the sizes of the batches in which they were.
        max_difference: the largest difference of two numbers in the outputs.
        largest: the largest number in the outputs.
    """

    path: str
    format: str
    inputs: dict[str, str]
    num_samples: int
    batch_sizes: tuple[int, ...]
    max_difference: float
    largest: float

    def __str__(self) -> str:
        """One line for each point."""
        inputs = ", ".join(f"{name} {shape}" for name, shape in self.inputs.items())
        sizes = ", ".join(map(str, dict.fromkeys(self.batch_sizes)))
        return "\n".join(
            (
                f"file       {self.path}   ({self.format})",
                f"inputs     {inputs}",
                f"parity     {self.max_difference:.2e} at most on {self.num_samples} validation"
                f" samples in batches of {sizes}; outputs up to {self.largest:.3g}",
            )
        )


class OfTensors(nn.Module):
    """A module as a function of tensors alone: those in the arguments of its `forward`.

    Args:
        module: the module.
        arguments: of `forward`; what in them is no tensor stays as it is here.

    Attributes:
        names: of the tensors, in their order.
        output_names: of the tensors in the output, once it was called.
    """

    def __init__(self, module: LightningModule, arguments: tuple[object, ...]) -> None:
        super().__init__()
        self.module = module
        self.arguments = arguments
        self.names = input_names(module, arguments)
        self.output_names: list[str] = []

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors in the output of the module's `forward`."""
        output = self.module(*with_tensors(self.arguments, tensors))
        found = named_tensors(output)
        self.output_names = [
            "output" if name == "input" else name.replace(".", "_") for name in found
        ]
        return tuple(found.values())


class Export:
    """The task of `Trainer.export`.

    Args:
        path: the file to write, a folder for `mlflow`.
        format: `onnx`, `pt2`, `safetensors` or `mlflow`.
        num_batches: validation batches to compare on.
        tolerance: how far an output may be from the module's, as a part of the largest output, or
            of 1 if that is larger.
    """

    name = "export"

    def __init__(self, path: str, format: str, num_batches: int, tolerance: float) -> None:
        self.path = path
        self.format = format
        self.num_batches = num_batches
        self.tolerance = tolerance

    def __call__(self, run: Run) -> ExportReport:
        """Write the file and compare.

        Raises:
            ConfigError: the model cannot be exported, or the file gives other numbers; then nothing
                is left at `path`.
        """
        module = run.module
        run.stage = "validate"
        module.attach_log(None)  # a value logged in forward has no meaning here
        module.cpu()
        batches = list(islice(run.load("val"), self.num_batches))
        with torch.no_grad(), in_eval_mode(module):
            inputs = [self._inputs(run, batch, index) for batch, _, index in batches]
            if not inputs:
                raise ConfigError(
                    "There is no validation batch to export with. Give loaders that have one, and"
                    " no limit_val_batches=0."
                )
            return self._export(module, inputs)

    def _inputs(self, run: Run, batch: object, dataloader_idx: int) -> tuple[object, ...]:
        transfer = run.calls.transfer
        batch = batch if transfer is None else transfer(batch, dataloader_idx)
        return move_to(run.module.forward_inputs(batch), "cpu")  # type: ignore[no-any-return]

    def _export(self, module: LightningModule, inputs: list[tuple[object, ...]]) -> ExportReport:
        function = OfTensors(module, inputs[0]).eval()
        samples = [tuple(named_tensors(one).values()) for one in inputs]
        if not samples[0]:
            raise ConfigError(
                f"{type(module).__name__}.forward gets no tensor of a validation batch. Override"
                " forward_inputs(self, batch) in it, which says what of a batch forward takes."
            )
        size = _batch_size(samples[0])
        # torch takes a dimension of 1 for one that can never be another; and a file that was made
        # for any number of samples is shown to take another than those of the loader
        example = _repeated(samples[0]) if size == 1 else samples[0]
        other = tuple(one[:1] if is_of_samples(one, size) else one for one in samples[0])
        if FORMATS[self.format].fixes_lengths:
            _check_lengths(function.names, samples)
        compared = [*samples, _repeated(samples[0]) if size == 1 else other]
        wanted = [function(*tensors) for tensors in compared]
        again = _difference(wanted[0], function(*compared[0]))
        if not again <= self.tolerance:
            raise ConfigError(
                f"{type(module).__name__}.forward gives other numbers each time for the same batch"
                f" (they differ by {again:.2g}), also in eval mode, so that no file could give the"
                " same. Take what is random out of forward, or let self.training decide."
            )
        folder = os.path.dirname(os.path.abspath(self.path))
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as scratch:
            made = os.path.join(scratch, os.path.basename(self.path))
            kind = FORMATS[self.format]
            kind.write(function, example, made)
            read = kind.read(made, function)
            worst = largest = 0.0
            for tensors, outputs in zip(compared, wanted, strict=True):
                got = read(tensors)
                worst = max(worst, _difference(outputs, got))
                largest = max(largest, *(_largest(output) for output in outputs))
            if not worst <= self.tolerance * max(1.0, largest):
                raise ConfigError(
                    f"The {self.format} form of {type(module).__name__} gives other numbers: they"
                    f" differ by up to {worst:.3g}, where outputs are up to {largest:.3g}. Nothing"
                    " was written. Is there something random in forward in eval mode, or a branch"
                    " that depends on the batch? If the difference is small enough for you, give"
                    f" tolerance={worst / max(1.0, largest) * 2:.1g}."
                )
            for one in os.listdir(scratch):
                _put(os.path.join(scratch, one), os.path.join(folder, one))
        sizes = tuple(_batch_size(tensors) for tensors in compared)
        shapes = {
            name: f"{str(tensor.dtype).removeprefix('torch.')} {_shape(tensor, size)}"
            for name, tensor in zip(function.names, samples[0], strict=True)
        }
        return ExportReport(self.path, self.format, shapes, sum(sizes), sizes, worst, largest)


def _check_lengths(names: list[str], samples: list[tuple[Tensor, ...]]) -> None:
    """See that the batches differ in their number of samples alone.

    Raises:
        ConfigError: they do not, as texts that are padded to the longest of their batch.
    """
    size = _batch_size(samples[0])
    for number, tensors in enumerate(samples[1:], 2):
        for name, first, one in zip(names, samples[0], tensors, strict=False):
            start = 1 if is_of_samples(first, size) else 0
            if one.ndim != first.ndim or one.shape[start:] != first.shape[start:]:
                raise ConfigError(
                    f"{name} has the shape {tuple(one.shape)} in batch {number}, but"
                    f" {tuple(first.shape)} in the first, which the export is made with. In its"
                    " file only the number of samples may vary. Pad all batches to one length; or"
                    " compare on the first alone, num_batches=1, for a file that takes its length."
                )


def _batch_size(tensors: tuple[Tensor, ...]) -> int:
    size = num_samples(tensors)
    return 1 if size is None else size


def _repeated(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    size = _batch_size(tensors)
    return tuple(torch.cat([one] * 2) if is_of_samples(one, size) else one for one in tensors)


def _shape(tensor: Tensor, batch_size: int) -> str:
    first = ["batch"] if is_of_samples(tensor, batch_size) else tensor.shape[:1]
    return f"({', '.join(map(str, [*first, *tensor.shape[1:]]))})"


def _difference(wanted: tuple[Tensor, ...], got: tuple[Tensor, ...]) -> float:
    worst = 0.0
    for one, other in zip(wanted, got, strict=True):
        if one.shape != other.shape or not torch.equal(one.isnan(), other.isnan()):
            return float("inf")
        if one.numel():
            apart = (one.double() - other.double()).abs()
            apart[one == other] = 0.0  # infinities too
            worst = max(worst, float(apart.nan_to_num(0.0, float("inf")).max()))
    return worst


def _largest(output: Tensor) -> float:
    values = output.double().abs()
    values = values[values.isfinite()]
    return float(values.max()) if values.numel() else 0.0


def _put(made: str, path: str) -> None:
    if os.path.isdir(made):
        shutil.copytree(made, path)  # which refuses a folder that is there
    else:
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(made, 0o666 & ~mask)  # safetensors lets the owner alone read
        os.replace(made, path)
