"""A fit that goes on from a checkpoint saved anywhere ends bit for bit as if it never stopped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import raylit as pl
from raylit.callbacks import Callback, ModelCheckpoint
from tests.lazy import torchmetrics
from tests.quiet import QUIET


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples with noise of all three random number generators."""

    def __init__(self, size: int = 20) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(size, 3, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.x[index]
        return (
            x + 0.1 * torch.randn(3) + 0.1 * float(np.random.randn()) + 0.1 * random.random(),
            x.sum(),
        )


class Net(pl.LightningModule):
    """Dropout, a torchmetrics object, values logged per step and epoch in every way, a schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))
        self.error = torchmetrics.MeanSquaredError()

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = batch["a"] if isinstance(batch, dict) else batch
        loss = self.loss(batch)
        self.error(self.net(batch[0]).squeeze(1), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("error", self.error, on_step=False, on_epoch=True)
        if batch_idx < 2:
            self.log("early", float(batch_idx), on_step=False, on_epoch=True, reduce_fx="sum")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Manual(Net):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.SGD(self.net[0].parameters(), lr=0.05),
            torch.optim.Adam(self.net[3].parameters(), lr=0.05),
        ]


class Saves(Callback):
    """Saves after every batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.progress.total_batches}.ckpt")


class Notes(Callback):
    """Keeps the metrics of every step."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *args: Any
    ) -> None:
        self.rows[trainer.progress.total_batches] = {
            "loss": outputs["loss"].item() if outputs else 0.0
        }


def loader(workers: int = 0, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(Noisy(), batch_size=3, num_workers=workers, **{"shuffle": True, **arguments})


def fit(
    folder: Path,
    data: Any,
    kind: type[Net] = Net,
    ckpt_path: Path | None = None,
    callbacks: Any = (),
    **arguments: Any,
) -> Any:
    """The trained module, and what was logged."""
    pl.seed_everything(3 if ckpt_path is None else 99, verbose=False)
    module, notes = kind(), Notes()
    settings = {
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "default_root_dir": folder,
        **QUIET,
        **arguments,
    }
    trainer = pl.Trainer(callbacks=[notes, *callbacks], **settings)
    result = trainer.fit(module, data, DataLoader(Noisy(4), batch_size=2), ckpt_path=ckpt_path)
    return {name: value.clone() for name, value in module.state_dict().items()}, notes.rows, result


CASES: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "in order": {"data": lambda: loader(shuffle=False)},
    "two workers": {"data": lambda: loader(2), "every": 4},
    "two workers that stay": {"data": lambda: loader(2, persistent_workers=True), "every": 5},
    "a generator of its own": {"data": lambda: loader(generator=torch.Generator().manual_seed(5))},
    "accumulation": {"accumulate_grad_batches": 3},
    "validation within the epoch": {"val_check_interval": 2},
    "several optimizers": {"kind": Manual},
    "two loaders, the shorter one again and again": {
        "data": lambda: {"a": loader(), "b": DataLoader(Noisy(7), batch_size=3, shuffle=True)}
    },
    "clipping": {"gradient_clip_val": 0.1},
    "double precision": {"precision": "64-true", "every": 3},
    "a limit": {"limit_train_batches": 5},
}


# the garbage collector, when it finds loaders whose workers stay, waits 5 s for each of these
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if "stay" in name else []) for name in CASES],
)
def test_it_ends_as_if_it_had_never_stopped(tmp_path: Path, name: str) -> None:
    case = dict(CASES[name])
    every, data = case.pop("every", 1), case.pop("data", loader)
    weights, rows, result = fit(tmp_path, data(), callbacks=[Saves(tmp_path)], **case)
    for number in range(1, len(rows) + 1, every):
        again, rest, resumed = fit(tmp_path, data(), ckpt_path=tmp_path / f"{number}.ckpt", **case)
        assert rest == {key: row for key, row in rows.items() if key > number}, number
        assert resumed.metrics == result.metrics, number
        assert resumed.history == result.history, number
        assert all(torch.equal(again[key], value) for key, value in weights.items()), number


def test_a_checkpoint_of_an_epochs_end(tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, save_top_k=-1)
    weights, _, result = fit(
        tmp_path, loader(2), max_epochs=3, callbacks=[saver], enable_checkpointing=True
    )
    path = next(tmp_path.glob("epoch=0*.ckpt"))
    again, _, resumed = fit(tmp_path, loader(2), max_epochs=3, ckpt_path=path)
    assert resumed.metrics == result.metrics
    assert all(torch.equal(again[key], value) for key, value in weights.items())


class Wide(pl.LightningModule):
    """32 MB of weights, so that a checkpoint is far larger than all else that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2**11, 2**12, bias=False)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def reads_what_it_leaves_out(folder: Path) -> bool:
    """Tell whether this torch, such as 2.6, reads the values of tensors for the device `meta`."""
    torch.save(torch.ones(2**22), folder / "tensor.pt")
    before = bytes_read()
    with open(folder / "tensor.pt", "rb") as file:
        torch.load(file, map_location="meta", weights_only=True)
    return bytes_read() - before > 2**22


@pytest.mark.parametrize("ckpt_path", ["last", "path"])
def test_the_file_is_read_once(tmp_path: Path, ckpt_path: str) -> None:
    """Also to tell whether it is whole, and which run is to go on."""

    def fit(max_epochs: int, ckpt_path: Any) -> int:
        before = bytes_read()
        trainer = pl.Trainer(
            max_epochs=max_epochs,
            logger=pl.MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/runs.db"),
            callbacks=[ModelCheckpoint(tmp_path / "saved", filename="one")],
            default_root_dir=tmp_path,
            **QUIET,
        )
        trainer.fit(Wide(), DataLoader(torch.ones(2, 2**11)), ckpt_path=ckpt_path)
        return bytes_read() - before

    fit(1, None)
    path = tmp_path / "saved" / "one.ckpt"
    size = path.stat().st_size
    assert size > 2**25
    times = 2 if ckpt_path == "path" and reads_what_it_leaves_out(tmp_path) else 1
    assert size < fit(2, path if ckpt_path == "path" else "last") < (times + 0.5) * size


def bytes_read() -> int:
    """What this process has asked the system for so far, cached or not."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])
