from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from raylit import seed_everything
from raylit.errors import ConfigError
from raylit.runtime.rng import isolated


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What seed_everything sets ends with the test."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def draw() -> tuple[float, float, float]:
    return torch.rand(1).item(), float(np.random.rand()), random.random()


def test_a_seed_fixes_all_generators() -> None:
    assert seed_everything(3, workers=True, verbose=False) == 3
    first = draw()
    assert (os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == ("3", "1")
    seed_everything(3, verbose=False)
    assert draw() == first
    seed_everything(4, verbose=False)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_without_a_seed_that_of_the_environment_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seed_everything(verbose=False) == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    assert seed_everything(verbose=False) == 17


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(ConfigError, match=r"0 to 4294967295"):
        seed_everything(seed)


def test_a_seed_of_the_environment_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "many")
    with pytest.raises(ConfigError, match="PL_GLOBAL_SEED='many'"):
        seed_everything()


def test_what_is_drawn_in_isolation_leaves_no_trace() -> None:
    seed_everything(1, verbose=False)
    expected = draw()
    seed_everything(1, verbose=False)
    with pytest.raises(ZeroDivisionError), isolated():
        draw()
        raise ZeroDivisionError
    assert draw() == expected
