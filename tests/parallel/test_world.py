from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.errors import ConfigError
from raylit.parallel import World
from raylit.parallel.world import choose_device
from raylit.testing import TinyModel
from tests.ranks import run_on_two_ranks


class FailsOnRank1(TinyModel):
    def on_train_batch_end(self, *args: Any) -> None:
        if self.global_rank == 1 and self.global_step == 3:
            raise ZeroDivisionError("the user's")


def communicate(folder: str) -> dict[str, Any]:
    world = World.join("cpu")
    mine = torch.tensor([float(world.rank)], requires_grad=True)
    gathered = world.all_gather(mine, sync_grads=True)
    (gathered.sum() * (world.rank + 1)).backward()
    world.barrier()
    found = {
        "place": (
            world.rank,
            world.size,
            world.local_rank,
            world.node_rank,
            world.num_nodes,
            world.is_zero,
        ),
        "broadcast": world.broadcast_object({"from": world.rank}),
        "objects": world.all_gather_object(world.rank * 10),
        "numbers": world.gather_numbers(world.rank + 5),
        "any": (world.any(world.rank == 1), world.any(False)),
        "tensors": world.all_gather(mine.detach()),
        "gathered": gathered.detach(),
        "gradient": mine.grad,
    }
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    try:
        pl.Trainer(max_epochs=5, accelerator="cpu", default_root_dir=folder, **quiet).fit(
            FailsOnRank1()
        )  # type: ignore[arg-type]
    except Exception as error:
        found["error"] = (type(error).__name__, str(error), error.__notes__)
    return found


def test_two_ranks(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(communicate, tmp_path)
    assert zero["place"] == (0, 2, 0, 0, 1, True)
    assert one["place"] == (1, 2, 1, 0, 1, False)
    for found in (zero, one):
        assert found["broadcast"] == {"from": 0}
        assert found["objects"] == [0, 10]
        assert found["numbers"] == [5, 6]
        assert found["any"] == (True, False)
        assert torch.equal(found["tensors"], torch.tensor([[0.0], [1.0]]))
        assert torch.equal(found["gathered"], found["tensors"])
        assert torch.equal(found["gradient"], torch.tensor([3.0])), (
            "gradients come back from both ranks"
        )
    # the one that failed says why; the other does not wait for it for ever
    name, text, notes = one["error"]
    assert (name, text) == ("ZeroDivisionError", "the user's")
    assert notes == ["(raylit) rank 1 of 2, epoch 1, batch 1, step 3, in train"]
    assert zero["error"][0] != "ZeroDivisionError"


def test_alone_nothing_is_asked() -> None:
    world, tensor = World(torch.device("cpu")), torch.ones(2)
    world.barrier()
    assert (world.rank, world.size, world.is_zero) == (0, 1, True)
    assert world.broadcast_object(tensor) is tensor
    assert world.all_gather_object(3) == [3]
    assert world.all_gather(tensor) is tensor
    assert world.any(True)
    assert world.gather_numbers(7) == [7]


def test_devices() -> None:
    assert choose_device("cpu", 0) == torch.device("cpu")
    with pytest.raises(ConfigError, match="accelerator='coal' is not known"):
        choose_device("coal", 0)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="finds no such device here"):
            choose_device("cuda", 0)
