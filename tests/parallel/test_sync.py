"""DDP and FSDP on 2 and 4 ranks against one process with the same global batch.

50 steps, the same losses and weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import Callback
from raylit.parallel import DDPStrategy, FSDPStrategy
from tests.quiet import BARE
from tests.ranks import run_on_ranks

NUM_STEPS = 50
BATCH = 8  # of all ranks together
X = torch.randn(160, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X.sin().sum(1, keepdim=True)


class Block(nn.Module):
    """With a layer of odd size, and one of fewer rows than there are ranks.

    The parts of the former differ between the ranks.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(6) for _ in range(2)])
        self.head = nn.Linear(6, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.scale * self.head(x)

    def loss(self, batch: list[Tensor]) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1])
        self.losses.append(loss.detach())
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self(batch[0]), batch[1]))

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0])

    def configure_optimizers(self) -> Any:
        decayed = [parameter for parameter in self.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in self.parameters() if parameter.ndim < 2]
        return torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.1}, {"params": others}], lr=0.01
        )


class ByHand(Net):
    """Two optimizers, stepped by hand; the gradients of two batches add up."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        del self.scale
        self.scale = 1.0  # type: ignore[assignment]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        first, second = self.optimizers()
        with first.toggle_model(sync_grad=batch_idx % 2 == 1):
            self.manual_backward(self.loss(batch) / 2)
        if batch_idx % 2 == 1:
            first.step()
            first.zero_grad()
        with second.toggle_model(sync_grad=True):
            self.manual_backward(self.loss(batch))
            second.step()
            second.zero_grad()

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.blocks.parameters(), lr=0.02),
            torch.optim.Adam(self.head.parameters(), lr=0.01),
        ]


class Unfreezes(Net):
    """Trains its first block from the second epoch on only, and its scale not at all after that."""

    def on_train_epoch_start(self) -> None:
        self.blocks[0].requires_grad_(self.current_epoch > 0)
        self.scale.requires_grad_(self.current_epoch == 0)


class NotesGradients(Callback):
    """Keeps the norm of all gradients after clipping."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        if pl_module.automatic_optimization and (
            trainer.progress.batch % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        ):
            norm: Any = nn.utils.get_total_norm(gradients)
            self.norms.append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.05},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "by hand": {"kind": ByHand},
    "unfrozen": {"kind": Unfreezes},
}
STRATEGIES: dict[str, Any] = {
    "ddp": "ddp",
    "fsdp": "fsdp",
    "fsdp by class": FSDPStrategy(auto_wrap_policy={Block}),
    "hybrid": FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(2, 2)),
    "fsdp by size": FSDPStrategy(min_num_params=20, reshard_after_forward=False),
}


def fit(folder: str, num_ranks: int, kind: type[Net] = Net, **arguments: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    module, notes = kind(), NotesGradients()
    accumulate = arguments.get("accumulate_grad_batches", 1)
    size = BATCH // num_ranks // accumulate
    trainer = pl.Trainer(
        max_steps=NUM_STEPS,
        precision="64-true",
        default_root_dir=folder,
        callbacks=notes,
        **BARE,
        **arguments,
    )
    # The ranks have different numbers of batches
    val = DataLoader(TensorDataset(X[:13], Y[:13]), 1)
    result = trainer.fit(module, DataLoader(TensorDataset(X, Y), size), val)
    assert type(module) is kind and all(
        type(parameter) is nn.Parameter for parameter in module.parameters()
    )
    losses = torch.stack(module.losses)
    predictions = torch.cat(trainer.predict(module, val))
    return {
        "weights": module.state_dict(),
        "losses": losses,
        "norms": notes.norms,
        "metrics": result.metrics,
        "predictions": predictions,
    }


def everything(folder: str) -> dict[tuple[str, str], Any]:
    size = torch.distributed.get_world_size()
    runs = [(name, case) for name in ("ddp", "fsdp by class") for case in CASES]
    runs += (
        [("fsdp", "clipped"), ("fsdp by size", "accumulated")]
        if size == 2
        else [("hybrid", "clipped")]
    )
    return {
        (name, case): fit(folder, size, strategy=STRATEGIES[name], **CASES[case])
        for name, case in runs
    }


@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.long)])
def test_ranks_together_are_one_process(tmp_path: Path, num_ranks: int) -> None:
    ranks = run_on_ranks(num_ranks, everything, tmp_path, timeout_s=240)
    alone = {case: fit(str(tmp_path), 1, **CASES[case]) for case in CASES}
    for strategy, case in ranks[0]:
        expected, found = alone[case], [rank[strategy, case] for rank in ranks]
        where = f"{strategy}, {case}"
        for rank in found:
            for name, value in expected["weights"].items():
                torch.testing.assert_close(
                    rank["weights"][name],
                    value,
                    rtol=1e-9,
                    atol=1e-11,
                    msg=lambda text, where=where: f"{where}: {text}",
                )
            torch.testing.assert_close(
                rank["predictions"], expected["predictions"], rtol=1e-9, atol=1e-11
            )
            assert rank["metrics"] == pytest.approx(expected["metrics"], rel=1e-6), where
            assert rank["norms"] == pytest.approx(expected["norms"], rel=1e-8), where
        together = torch.stack([rank["losses"] for rank in found]).mean(0)
        torch.testing.assert_close(together, expected["losses"], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "strategy", [DDPStrategy(), FSDPStrategy(), FSDPStrategy(state_dict_type="sharded")]
)
def test_on_one_rank_a_strategy_changes_nothing(tmp_path: Path, strategy: Any) -> None:
    plain, found = fit(str(tmp_path), 1), fit(str(tmp_path), 1, strategy=strategy)
    assert all(
        torch.equal(found["weights"][name], value) for name, value in plain["weights"].items()
    )
    assert torch.equal(found["losses"], plain["losses"])
