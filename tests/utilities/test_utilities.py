"""Lightning's names lead to the same things, with the same results."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import nn

import raylit
from raylit.errors import ConfigError
from tests.lazy import lightning

MODULES = [
    "utilities",
    "utilities.combined_loader",
    "utilities.exceptions",
    "utilities.grads",
    "utilities.memory",
    "utilities.rank_zero",
    "utilities.types",
    "loggers.logger",
    "strategies",
]


@pytest.mark.parametrize("module", MODULES)
def test_names_are_lightnings(module: str) -> None:
    ours, theirs = (
        importlib.import_module(f"raylit.{module}"),
        importlib.import_module(f"lightning.pytorch.{module}"),
    )
    names = [
        name
        for name in getattr(ours, "__all__", vars(ours))
        if not name.startswith("_") and name not in ("annotations", "Tensor")
    ]
    assert names
    assert [name for name in names if not hasattr(theirs, name)] == []


@pytest.mark.parametrize("norm_type", [1, 2, "inf", 3.5])
def test_grad_norm(norm_type: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    assert raylit.utilities.grad_norm(net, 2) == {}
    net(torch.randn(5, 3)).sum().backward()
    theirs = lightning.pytorch.utilities.grad_norm(net, norm_type)
    assert raylit.utilities.grad_norm(net, norm_type) == pytest.approx(
        {name: float(value) for name, value in theirs.items()}
    )


def test_grad_norm_wants_a_positive_norm() -> None:
    with pytest.raises(ConfigError, match="norm_type=0"):
        raylit.utilities.grad_norm(nn.Linear(1, 1), 0)
