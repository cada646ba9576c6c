"""What each option of DDPStrategy does, on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_wrapper
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.errors import ConfigError
from raylit.parallel import DDPStrategy, find_strategy
from tests.quiet import BARE
from tests.ranks import run_on_two_ranks

SIZE = 16
X = torch.randn(8, SIZE, generator=torch.Generator().manual_seed(5))


class Net(pl.LightningModule):
    """Keeps the gradients of its steps; the ranks' losses differ."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 1)
        self.norm = nn.BatchNorm1d(SIZE)
        self.gradients: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.norm(self.layer(batch[0])).square().mean() + self.other(batch[0]).mean()) * (
            1 + self.global_rank
        )

    def on_train_batch_end(self, *args: Any) -> None:
        assert self.layer.weight.grad is not None
        self.gradients.append(self.layer.weight.grad.clone())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Partly(Net):
    """Leaves a layer unused."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.layer(batch[0]).square().mean()


class Stacks(Net):
    """Keeps outputs of validation, and stacks them at its end."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.outputs.append(self.layer(batch[0]).square().mean())

    def on_validation_epoch_start(self) -> None:
        self.outputs: list[Tensor] = []

    def on_validation_epoch_end(self) -> None:
        torch.stack(self.outputs)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(X[:1]))


class Embeds(pl.LightningModule):
    """Its loss is that of an average over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (4, 4)),
            nn.BatchNorm1d(4),
            nn.Flatten(),
            nn.Linear(SIZE, 4),
            nn.BatchNorm1d(4, momentum=None),
            nn.Tanh(),
            nn.Linear(4, 1),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - batch[0][:, :1]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: str, strategy: Any, kind: Any = Net, **arguments: Any) -> Any:
    torch.manual_seed(0)
    module, size = kind(), 8 // (dist.get_world_size() if dist.is_initialized() else 1)
    trainer = pl.Trainer(
        strategy=strategy,
        max_steps=4,
        default_root_dir=folder,
        **BARE,
        **arguments,
    )
    trainer.fit(module, DataLoader(TensorDataset(X), size))
    return module


def failure(*args: Any) -> str:
    try:
        fit(*args)
    except RuntimeError as error:
        return "\n".join([str(error), *error.__notes__])
    return "none"


def sums_in_half(state: Any, bucket: Any) -> Any:
    """A hook of one's own: the sum of the gradients, halved, and counted in its state."""
    state.append(bucket.index())
    return (
        dist.all_reduce(bucket.buffer().mul_(0.5), async_op=True)
        .get_future()
        .then(lambda future: future.value()[0])
    )


def everything(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    calls: list[int] = []
    for name, strategy in {
        "none": DDPStrategy(),
        "fp16": DDPStrategy(ddp_comm_hook="fp16"),
        "bf16": DDPStrategy(ddp_comm_hook="bf16"),
        "powersgd": DDPStrategy(
            ddp_comm_hook="powersgd",
            ddp_comm_state=PowerSGDState(None, matrix_approximation_rank=2, start_powerSGD_iter=2),
        ),
        "own": DDPStrategy(ddp_comm_hook=sums_in_half, ddp_comm_state=calls),
        "wrapped": DDPStrategy(
            ddp_comm_hook=sums_in_half, ddp_comm_state=[], ddp_comm_wrapper=fp16_compress_wrapper
        ),
    }.items():
        found[name] = fit(folder, strategy).gradients
    found["calls"] = len(calls)
    for is_view in (True, False):
        module = fit(folder, DDPStrategy(gradient_as_bucket_view=is_view))
        found["storages", is_view] = len(
            {parameter.grad.untyped_storage().data_ptr() for parameter in module.parameters()}
        )
    for name in ("ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"):
        found["unused", name] = failure(folder, name, Partly)
    found["unused", "static"] = failure(folder, DDPStrategy(static_graph=True), Partly)
    for shared in (True, False):
        module = fit(folder, DDPStrategy(broadcast_buffers=shared))
        found["means", shared] = module.norm.running_mean.clone()
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    return run_on_two_ranks(everything, tmp_path_factory.mktemp("options"))


def test_hooks_that_halve_what_is_sent(ranks: Any) -> None:
    zero, one = ranks
    for name, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        assert all(torch.equal(gradient, gradient.to(kind).float()) for gradient in zero[name]), (
            "what arrives has the precision of what is sent"
        )
        torch.testing.assert_close(zero[name][0], zero["none"][0], rtol=0.02, atol=1e-3)
        assert all(map(torch.equal, zero[name], one[name]))
    assert not torch.equal(zero["none"][0], zero["none"][0].half().float())


def test_powersgd_sends_matrices_of_low_rank_once_it_begins(ranks: Any) -> None:
    gradients = ranks[0]["powersgd"]
    assert torch.equal(gradients[0], ranks[0]["none"][0])
    numbers = [int(torch.linalg.matrix_rank(gradient, rtol=1e-4)) for gradient in gradients]
    assert numbers[0] > 2
    assert numbers[-1] == 2
    assert not torch.equal(gradients[-1], ranks[0]["none"][-1])
    assert all(map(torch.equal, gradients, ranks[1]["powersgd"]))


def test_a_hook_of_ones_own(ranks: Any) -> None:
    for rank in ranks:
        assert rank["calls"] >= 4
        for own, plain in zip(rank["own"], rank["none"], strict=True):
            torch.testing.assert_close(own, plain, rtol=1e-5, atol=1e-7)
        assert torch.equal(rank["wrapped"][0], rank["wrapped"][0].half().float())


def test_gradients_are_views_of_a_bucket(ranks: Any) -> None:
    assert ranks[0]["storages", True] == 1
    assert ranks[0]["storages", False] == 6


def test_unused_parameters(ranks: Any) -> None:
    for rank in ranks:
        for name in ("ddp", "ddp_find_unused_parameters_false"):
            assert "find_unused_parameters=True" in rank["unused", name]
            assert (
                "(raylit) other.weight, other.bias, norm.weight and 1 more had"
                in rank["unused", name]
            )
        assert (
            rank["unused", "ddp_find_unused_parameters_true"] == rank["unused", "static"] == "none"
        )


def stack(folder: str) -> str:
    return failure(folder, "ddp", Stacks)


def test_a_rank_without_a_batch_is_named_where_a_hook_fails(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(stack, tmp_path)
    assert "non-empty TensorList" in one
    assert "Rank 1 has no batch in this val epoch: the data is dealt out" in one
    assert "has no batch" not in zero, "it has one, and lost the other rank"


def test_buffers_are_those_of_rank_0_or_each_ranks_own(ranks: Any) -> None:
    zero, one = ranks
    assert not torch.equal(zero["means", False], one["means", False])
    assert torch.equal(zero["means", True], zero["means", False])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ddp_comm_hook": "pf16"}, "ddp_comm_hook='pf16' is not known. Did you mean 'fp16'"),
        ({"ddp_comm_state": 1}, "belong to a hook"),
    ],
)
def test_a_hook_that_there_is_not(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DDPStrategy(**arguments)


def test_names() -> None:
    assert find_strategy("ddp_find_unused_parameters_false") == DDPStrategy(
        find_unused_parameters=False
    )
    with pytest.raises(ConfigError, match="or an object"):
        find_strategy(3)  # type: ignore[arg-type]


def synced(folder: str) -> Any:
    modules = [
        fit(folder, strategy, Embeds, sync_batchnorm=True, precision="64-true")
        for strategy in ("ddp", "fsdp")
    ]
    assert all(type(module.net[1]) is nn.BatchNorm1d for module in modules)
    return [module.state_dict() for module in modules]


def test_batch_norm_over_all_ranks(tmp_path: Path) -> None:
    ranks = run_on_two_ranks(synced, tmp_path)
    alone = fit(str(tmp_path), "auto", Embeds, precision="64-true").state_dict()
    for rank in [*ranks[0], *ranks[1]]:
        for name, value in alone.items():
            torch.testing.assert_close(rank[name], value, rtol=1e-9, atol=1e-11)
