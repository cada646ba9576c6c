"""What a rank alone holds comes back with a resume, and weights that are shared stay shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import Callback
from raylit.parallel.batch_norm import CPUSyncBatchNorm
from raylit.parallel.ddp import Feedback
from raylit.strategies import DDPStrategy, FSDPStrategy
from tests.engine.test_cursor import Saves
from tests.quiet import BARE
from tests.ranks import run_on_two_ranks

STEPS = 6


class Normed(pl.LightningModule):
    """Has running means, which each rank updates from its own batches."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 6))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - batch[0]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Tied(pl.LightningModule):
    """Its first and last layer are one matrix; steps its optimizer by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.automatic_optimization = False
        self.embedding = nn.Embedding(8, 6)
        self.middle = nn.Linear(6, 6)
        self.head = nn.Linear(6, 8, bias=False)
        self.head.weight = self.embedding.weight

    def training_step(self, batch: Any, batch_idx: int) -> None:
        found = self.head(self.middle(self.embedding(batch[0])))
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(found, batch[0]))
        optimizer.step()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.5)


class SavesAt(Callback):
    """Saves after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(
    folder: Path, module: pl.LightningModule, data: Tensor, strategy: Any, name: str, **more: Any
) -> dict[str, Tensor]:
    path = folder / f"{name}.ckpt"
    resumes = more.pop("resumes", False)
    trainer = pl.Trainer(
        max_steps=STEPS,
        strategy=strategy(),
        default_root_dir=folder,
        callbacks=[] if resumes else [SavesAt(3, path)],
        **BARE,
    )
    loader = DataLoader(TensorDataset(data), 4, shuffle=True)
    trainer.fit(module, loader, ckpt_path=path if resumes else None)
    return {
        name: value.clone() for name, value in [*module.named_parameters(), *module.named_buffers()]
    }


STRATEGIES: dict[str, Any] = {
    "own buffers": lambda: DDPStrategy(broadcast_buffers=False),
    "fsdp": FSDPStrategy,
    "powersgd": lambda: DDPStrategy(
        ddp_comm_hook="powersgd",
        ddp_comm_state=PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=1),
        broadcast_buffers=False,
    ),
}


def all_of_them(folder: str) -> dict[str, Any]:
    root = Path(folder)
    data = torch.randn(64, 6, generator=torch.Generator().manual_seed(3))
    found: dict[str, Any] = {}
    for name, strategy in STRATEGIES.items():
        torch.manual_seed(1)
        whole = fit(root, Normed(), data, strategy, name)
        torch.manual_seed(99)
        again = fit(root, Normed(), data, strategy, name, resumes=True)
        found[name] = [key for key, value in whole.items() if not torch.equal(value, again[key])]
    words = torch.randint(0, 8, (64,), generator=torch.Generator().manual_seed(2))
    for strategy in ("ddp", "fsdp"):
        module = Tied()
        fit(root, module, words, {"ddp": DDPStrategy, "fsdp": FSDPStrategy}[strategy], strategy)
        found[f"tied {strategy}"] = module.state_dict()
        found[f"{strategy} ties"] = module.head.weight is module.embedding.weight
    found["norm"] = normalizes()
    return found


def normalizes() -> dict[str, Any]:
    """Batch norm over both ranks: in 16 bits, of one value in all, and in evaluation."""
    rank = dist.get_rank()
    values = torch.randn(4096, 2, generator=torch.Generator().manual_seed(7)) + 9
    own = values[rank::2]
    layer: Any = CPUSyncBatchNorm(2)
    layer(own.bfloat16())
    reference = nn.BatchNorm1d(2)
    reference(values.bfloat16().float())
    single: Any = CPUSyncBatchNorm(2)
    single(torch.full((1 - rank, 2), 3.0))
    without: Any = CPUSyncBatchNorm(2, track_running_stats=False).eval()
    if rank == 0:
        without(own[:1])  # the other rank has no batch
    return {
        "close": torch.allclose(layer.running_mean, reference.running_mean, rtol=1e-4)
        and torch.allclose(layer.running_var, reference.running_var, rtol=1e-3),
        "finite": bool(torch.isfinite(single.running_var).all()),
    }


def test_each_rank_goes_on_with_what_it_alone_holds(tmp_path: Path) -> None:
    for found in run_on_two_ranks(all_of_them, tmp_path):
        assert {name: found[name] for name in STRATEGIES} == {key: [] for key in STRATEGIES}
        assert found["ddp ties"] and found["fsdp ties"]
        for name, value in found["tied ddp"].items():
            assert torch.allclose(found["tied fsdp"][name], value, atol=1e-6), name
        assert found["norm"] == {"close": True, "finite": True}


def goes_on_within_windows(folder: str) -> dict[str, Any]:
    """Which fits, saved at each call of a hook within accumulations, end otherwise; of how many."""
    root = Path(folder)
    data = DataLoader(
        TensorDataset(torch.randn(56, 6, generator=torch.Generator().manual_seed(3))), 4
    )
    found = {}
    for hook in ("on_after_backward", "on_train_batch_end"):

        def fit(ckpt_path: Path | None, *callbacks: Callback) -> dict[str, Tensor]:
            trainer = pl.Trainer(
                max_epochs=1,
                accumulate_grad_batches=3,
                gradient_clip_val=0.1,
                strategy=DDPStrategy(broadcast_buffers=False),
                default_root_dir=root,
                callbacks=[*callbacks],
                **BARE,
            )
            torch.manual_seed(1 if ckpt_path is None else 99)
            module = Normed()
            trainer.fit(module, data, ckpt_path=ckpt_path)
            return {name: value.clone() for name, value in module.state_dict().items()}

        (root / hook).mkdir(exist_ok=True)
        saves = Saves(hook, root / hook)
        whole = fit(None, saves)
        differ = []
        for path in saves.files:
            again = fit(path)
            if not all(torch.equal(again[name], value) for name, value in whole.items()):
                differ.append(path.stem)
        found[hook] = (len(saves.files), differ)
    return found


def test_gradients_of_each_rank_within_an_accumulation_come_back(tmp_path: Path) -> None:
    for found in run_on_two_ranks(goes_on_within_windows, tmp_path):
        assert found == {"on_after_backward": (7, []), "on_train_batch_end": (7, [])}


class Bucket:
    """Gradients that are sent together, as DDP describes them to a hook."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        self.names = names
        self.module = module

    def index(self) -> int:
        return 0

    def parameters(self) -> list[nn.Parameter]:
        return [self.module.get_parameter(name) for name in self.names]

    def buffer(self) -> Tensor:
        return torch.cat([one.detach().flatten() for one in self.parameters()])


def test_what_powersgd_has_not_sent_is_found_in_other_buckets() -> None:
    """DDP orders its buckets anew after the first step."""
    module = nn.Linear(3, 2)
    state = PowerSGDState(None)
    state.iter = 7
    before = Feedback(state, module)
    before.follow(Bucket(module, ["weight", "bias"]))
    state.error_dict[0] = torch.arange(8.0)
    kept = before.state_dict()
    resumed = PowerSGDState(None)
    after = Feedback(resumed, module)
    after.load_state_dict(kept)
    after.follow(Bucket(module, ["bias", "weight"]))
    assert resumed.iter == 7
    assert resumed.error_dict[0].tolist() == [6, 7, 0, 1, 2, 3, 4, 5]
    after.follow(Bucket(module, ["weight", "bias"]))
    assert resumed.error_dict[0].tolist() == list(range(8))
    assert after.state_dict()["errors"].keys() == {"weight", "bias"}
