"""Calls a method of a module that samples, and leaves no trace of it in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from raylit.runtime import rng


def sampled(method: Callable[[], object], module: nn.Module, seed: int) -> object:
    """Return the result of a method in eval mode, without gradients, with a seed of its own.

    Modes and random states are restored afterwards.
    """
    modes = [(one, one.training) for one in module.modules()]
    module.eval()
    try:
        with rng.isolated(), torch.no_grad():
            rng.seed(seed, accelerator=True)
            return method()
    finally:
        for one, training in modes:
            one.training = training
