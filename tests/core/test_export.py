"""Taking a module out of raylit."""

from __future__ import annotations

import importlib.machinery
import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from raylit.errors import ConfigError, MissingPackageError
from raylit.testing import BoringModel


@pytest.fixture
def onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package onnx that is installed as far as one can tell."""
    package = ModuleType("onnx")
    package.__spec__ = importlib.machinery.ModuleSpec("onnx", None)
    monkeypatch.setitem(sys.modules, "onnx", package)


@pytest.mark.usefixtures("onnx")
def test_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def export(model: Any, args: Any, f: Any = None, *, dynamo: bool = False, **kwargs: Any) -> str:
        calls.append(
            (
                model,
                args,
                f,
                kwargs,
                torch.is_grad_enabled(),
                [module.training for module in model.modules()],
            )
        )
        return "exported"

    monkeypatch.setattr(torch.onnx, "export", export)
    model, example, buffer = BoringModel(), torch.ones(1, 32), BytesIO()
    model.add_module("dropout", torch.nn.Dropout().eval())
    assert (
        model.to_onnx(tmp_path / "given.onnx", {"x": example}, input_names=["rows"]) == "exported"
    )
    model.example_input_array = example
    model.to_onnx(buffer)
    modes = [True, True, False]
    given = (
        model,
        {"x": example},
        str(tmp_path / "given.onnx"),
        {"input_names": ["rows"]},
        False,
        modes,
    )
    assert calls == [given, (model, example, buffer, {}, False, modes)]


@pytest.mark.usefixtures("onnx")
def test_onnx_needs_an_input() -> None:
    with pytest.raises(ConfigError, match="example_input_array"):
        BoringModel().to_onnx(dynamo=False)


def test_onnx_names_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match="pip install onnx"):
        BoringModel().to_onnx("model.onnx", torch.ones(1, 32))


@pytest.mark.usefixtures("onnx")
def test_onnx_by_tracing_anew_needs_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match="pip install onnxscript"):
        BoringModel().to_onnx("model.onnx", torch.ones(1, 32), dynamo=True)
