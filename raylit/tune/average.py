"""The mean of the weights of several checkpoints of one trial.

Source: Vaswani et al., "Attention Is All You Need", 2017, section 6.1; Izmailov et al., "Averaging
Weights Leads to Wider Optima and Better Generalization", 2018.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from raylit.checkpoint import load

AVERAGE = "average.ckpt"


def checkpoints_beside(path: str) -> list[str]:
    """Return the checkpoints in the folder of one, which ModelCheckpoint has kept as the best."""
    found = Path(path).parent.glob("*.ckpt")
    return sorted(str(one) for one in found if one.name != AVERAGE and one.stem[:4] != "last")


def write_average(paths: Sequence[str]) -> str:
    """Write a checkpoint like the first with the mean of the weights of all; returns its path."""
    first = load(paths[0], weights_only=True)
    states = [load(path, weights_only=True)["state_dict"] for path in paths]
    first["state_dict"] = {
        name: _mean([state[name] for state in states]) for name in first["state_dict"]
    }
    target = os.path.join(os.path.dirname(paths[0]), AVERAGE)
    torch.save(first, target)
    return target


def _mean(values: list[Tensor]) -> Tensor:
    if not values[0].is_floating_point():
        return values[0]  # such as the count of batches that a BatchNorm has seen
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)
