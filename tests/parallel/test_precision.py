from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from raylit.errors import ConfigError
from raylit.parallel import Precision
from raylit.parallel.precision import canonical

CPU = torch.device("cpu")
Pair = namedtuple("Pair", ["x", "y"])


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (None, "32-true"),
        (32, "32-true"),
        ("64", "64-true"),
        (16, "16-mixed"),
        ("bf16", "bf16-mixed"),
        ("bf16-true", "bf16-true"),
    ],
)
def test_names(given: str | int | None, name: str) -> None:
    assert canonical(given) == name


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="precision=24 is not known"):
        canonical(24)


@pytest.mark.parametrize(
    ("name", "parameters", "output"),
    [
        ("32-true", torch.float32, torch.float32),
        ("64-true", torch.float64, torch.float64),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("bf16-mixed", torch.float32, torch.bfloat16),
    ],
)
def test_formats(name: str, parameters: torch.dtype, output: torch.dtype) -> None:
    precision, layer = Precision(name, CPU), torch.nn.Linear(2, 2)
    precision.convert_module(layer)
    with precision.context():
        out = layer(precision.convert_input(torch.ones(1, 2)))
    assert (layer.weight.dtype, out.dtype) == (parameters, output)
    assert torch.get_default_dtype() == torch.float32, (
        "what a step sets for the process ends with it"
    )


def test_only_numbers_with_a_point_are_converted() -> None:
    batch = {
        "x": [torch.ones(1), torch.ones(1, dtype=torch.int64)],
        "y": Pair(torch.ones(1), "text"),
        "n": 3,
    }
    found = Precision("64-true", CPU).convert_input(batch)
    assert [tensor.dtype for tensor in found["x"]] == [torch.float64, torch.int64]
    assert (type(found["y"]), found["y"].x.dtype, found["y"].y, found["n"]) == (
        Pair,
        torch.float64,
        "text",
        3,
    )
    assert Precision("bf16-mixed", CPU).convert_input(batch) is batch


def test_a_cpu_has_no_mixed_half_precision() -> None:
    with pytest.warns(UserWarning, match="bf16-mixed is used instead"):
        precision = Precision("16-mixed", CPU)
    assert (precision.name, precision.scaler) == ("bf16-mixed", None)
