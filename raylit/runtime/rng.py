"""The random states of a process: seeding them, and keeping them as they were."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from raylit.errors import ConfigError, WrongTypeError
from raylit.runtime.aliases import StateDict
from raylit.runtime.messages import info

RandomStates = tuple[Any, ...]  # of Python, numpy, torch, and this process's device
MAX_SEED = 2**32 - 1


def seed_everything(seed: int | None = None, workers: bool = False, verbose: bool = True) -> int:
    """Seed the random number generators of Python, numpy and PyTorch on all devices.

    Args:
        seed: 0 to 2**32 - 1. None takes the environment variable PL_GLOBAL_SEED, or else 0.
        workers: whether the worker processes of loaders are seeded from it too, each with a seed of
            its own.
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
            raise ConfigError(
                f"The environment variable PL_GLOBAL_SEED={given!r} is not a whole number."
            ) from None
    try:
        number = int(seed)
    except (TypeError, ValueError, OverflowError):
        number = -1
    if not 0 <= number <= MAX_SEED:
        raise WrongTypeError(
            f"seed={seed!r} is none, or out of range: give a whole number from 0 to {MAX_SEED}."
        )
    seed = number
    if verbose:
        info(f"Seed set to {seed}")
    os.environ["PL_GLOBAL_SEED"] = str(seed)
    os.environ["PL_SEED_WORKERS"] = str(int(workers))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    return seed


def mix(*values: object) -> int:
    """Return 63 bits that look random, as a function of numbers and texts."""
    return digest(repr(values).encode())


def digest(data: bytes) -> int:
    """Return 63 bits that look random, as a function of bytes."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def seed(number: int, accelerator: bool = False) -> None:
    """Seed the generators of Python, numpy and PyTorch on the CPU.

    Args:
        number: 0 to 2**63 - 1.
        accelerator: whether to seed that of this process's accelerator too, if it is in use.
    """
    random.seed(number)
    np.random.seed(number % (MAX_SEED + 1))
    torch.default_generator.manual_seed(number)
    if accelerator and _uses_cuda():
        torch.cuda.manual_seed(number)  # of this device; torch.manual_seed would seed all of them


def capture(cuda: bool = True) -> RandomStates:
    """Return the random states as they are, for `revert` in this process: cheaper than `state`."""
    device = torch.cuda.get_rng_state() if cuda and _uses_cuda() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), device


def revert(captured: RandomStates) -> None:
    """Restore the random states from `capture`."""
    python, numpy, cpu, device = captured
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if device is not None:
        torch.cuda.set_rng_state(device)


def _uses_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def plain(captured: RandomStates) -> StateDict:
    """Return the random states from `capture` as plain data, for `restore`."""
    (version, words, gauss), legacy, cpu, device = captured
    _, keys, position, has_gauss, cached = legacy
    states: dict[str, object] = {
        "torch": cpu,
        "python": (version, torch.tensor(words), gauss),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
    }
    return states if device is None else {**states, "cuda": device}


def state(cuda: bool = True) -> StateDict:
    """Return the random states of Python, numpy and PyTorch as plain data.

    And, if `cuda`, that of this process's accelerator.
    """
    return plain(capture(cuda))


def restore(states: StateDict) -> None:
    """Restore the random states from `state`."""
    torch.set_rng_state(states["torch"])
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


@contextmanager
def isolated(cuda: bool = True) -> Iterator[None]:
    """Leave the random states as they are now, whatever is drawn in the block."""
    captured = capture(cuda)
    try:
        yield
    finally:
        revert(captured)
