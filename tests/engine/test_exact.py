from __future__ import annotations

from typing import Any

import pytest
import torch

from raylit.engine.exact import shared_out
from raylit.parallel import World


@pytest.mark.parametrize("size", [1, 2, 4])
def test_each_rank_goes_on_with_random_states_of_its_own(size: int) -> None:
    states: list[Any] = [{"loaders": [], "rng": f"of rank {rank}"} for rank in range(3)]
    for rank in range(size):
        world = World(torch.device("cpu"))
        world.rank, world.size = rank, size
        share = shared_out(states, world)
        assert share.get("rng") == (f"of rank {rank}" if rank < 3 else None)
