"""The random states of a process: seeding them, and keeping them as they were."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from raylit.errors import ConfigError
from raylit.messages import info

MAX_SEED = 2**32 - 1


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed the random number generators of Python, numpy and PyTorch on all devices.

    Args:
        seed: 0 to 2**32 - 1. None takes the environment variable PL_GLOBAL_SEED, or else 0.
        workers: whether the worker processes of loaders are seeded from it too, each with a seed of its own.
        verbose: whether to say the seed.

    Returns:
        The seed used.

    Raises:
        ConfigError: the seed is out of range or not a whole number.
    """
    if seed is None:
        given = os.environ.get("PL_GLOBAL_SEED", "0")
        try:
            seed = int(given)
        except ValueError:
            raise ConfigError(f"The environment variable PL_GLOBAL_SEED={given!r} is not a whole number.") from None
    if not 0 <= int(seed) <= MAX_SEED:
        raise ConfigError(f"seed={seed} is out of range: give a whole number from 0 to {MAX_SEED}.")
    seed = int(seed)
    if verbose:
        info(f"Seed set to {seed}")
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def state(cuda: bool = True) -> dict[str, Any]:
    """Return the random states of Python, numpy, PyTorch and, if `cuda`, the CUDA devices."""
    states = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
    if cuda and torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def restore(states: dict[str, Any]) -> None:
    """Go back to what `state` returned."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])


@contextmanager
def isolated(cuda: bool = True) -> Iterator[None]:
    """Within, random numbers may be drawn; afterwards the states are what they were before."""
    states = state(cuda)
    try:
        yield
    finally:
        restore(states)
