from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.errors import ConfigError
from raylit.parallel import FSDPStrategy, World
from raylit.parallel.precision import Precision
from raylit.parallel.world import choose_device
from raylit.testing import TinyModel
from tests.quiet import BARE
from tests.ranks import run_on_ranks, run_on_two_ranks


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
    try:
        pl.Trainer(max_epochs=5, default_root_dir=folder, **BARE).fit(FailsOnRank1())  # type: ignore[arg-type]
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
    assert notes == ["(raylit) rank 1 of 2, epoch 1, batch_idx 0, step 3, in train"]
    assert zero["error"][0] != "ZeroDivisionError"


def on_unequal_nodes(folder: str) -> dict[str, Any]:
    os.environ["NODE_RANK"] = "1" if os.environ["RANK"] == "2" else "0"
    os.environ["LOCAL_WORLD_SIZE"] = "1" if os.environ["RANK"] == "2" else "2"
    world = World.join("cpu")
    strategy = FSDPStrategy(sharding_strategy="HYBRID_SHARD")
    with pytest.raises(ConfigError) as refused:
        strategy.shard(TinyModel(), world, Precision("32-true", world.device))
    return {"num_nodes": world.num_nodes, "refused": str(refused.value)}


def test_nodes_with_different_numbers_of_ranks(tmp_path: Path) -> None:
    first, *others = run_on_ranks(3, on_unequal_nodes, tmp_path)
    assert first["num_nodes"] == 2
    assert "3 ranks are not shared out evenly among 2 nodes" in first["refused"]
    assert others == [first, first]


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


def test_the_gpus_that_were_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    assert [choose_device("auto", rank, (2, 1)).index for rank in (0, 1)] == [2, 1] == chosen
    assert choose_device("gpu", 1).index == 1
    assert choose_device("cpu", 0, (2,)) == torch.device("cpu")
    for gpus, rank in (((3,), 0), ((2,), 1), ((-1,), 0)):
        with pytest.raises(ConfigError, match="names no GPU for rank"):
            choose_device("gpu", rank, gpus)
    trainer = pl.Trainer(devices=[1], max_steps=1, logger=False)
    assert trainer.precision_plugin.device.index == 1 == chosen[-1]


class CannotBeSent(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def raises(kind: str) -> int:
    if kind == "declared":
        raise KeyError("declared")
    if kind == "another":
        raise LookupError("another")
    if kind == "not to be sent":
        raise CannotBeSent(1, 2)
    return 7


def from_zero(folder: str) -> dict[str, Any]:
    world = World.join("cpu")
    found: dict[str, Any] = {"value": world.from_zero(lambda: raises("nothing"), KeyError)}
    for kind in ("declared", "another", "not to be sent"):
        try:
            world.from_zero(lambda kind=kind: raises(kind), KeyError)  # type: ignore[misc]
        except Exception as error:
            found[kind] = (type(error).__name__, str(error))
    try:
        world.from_zero(lambda: lambda: 0, KeyError)  # a result that cannot be sent either
    except Exception as error:
        found["lambda"] = type(error).__name__
    found["after"] = world.all_gather_object(world.rank)
    return found


def test_an_exception_on_rank_0_reaches_all(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(from_zero, tmp_path)
    assert zero["value"] == one["value"] == 7
    for kind in ("declared", "another"):
        assert zero[kind] == one[kind]
        assert kind in zero[kind][1]
    assert zero["not to be sent"] == ("CannotBeSent", "1 and 2")
    assert one["not to be sent"] == ("RuntimeError", "CannotBeSent: 1 and 2")
    assert "lambda" in zero
    assert "lambda" in one
    assert zero["after"] == one["after"] == [0, 1]


class Estimates(TinyModel):
    """Rank 0 alone asks how many steps there will be."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook
        self.estimate: float | None = None

    def ask(self, hook: str) -> None:
        if hook == self.hook and self.global_rank == 0:
            self.estimate = self.trainer.estimated_stepping_batches

    def setup(self, stage: str) -> None:
        self.ask("setup")

    def configure_optimizers(self) -> Any:
        self.ask("configure_optimizers")
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        self.ask("on_fit_start")


def estimate(folder: str) -> list[Any]:
    found = []
    for hook in ("setup", "configure_optimizers", "on_fit_start"):
        model = Estimates(hook)
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model)
        found.append((model.estimate, trainer.global_step))
    return found


def test_rank_0_alone_may_ask_for_the_number_of_steps(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(estimate, tmp_path)
    assert all(steps == estimated for estimated, steps in zero)
    assert [steps for _, steps in one] == [steps for _, steps in zero]
    assert [estimated for estimated, _ in one] == [None] * 3
