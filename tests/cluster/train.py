"""A fit on two Ray workers: python -m tests.cluster.train FOLDER EPOCHS [FEWEST [MOST]].

Each rank appends to FOLDER/seen-RANK what it trains on.

With FEWEST it is elastic, and slow while it has only one worker, so that there is time for another
to come. With VALIDATES in the environment it also validates, without waiting for it. Its history
comes to FOLDER/history.pt.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import raylit as pl

NUM_SAMPLES, BATCH_SIZE, EPOCHS, STEP_S, ALONE_S = 96, 4, 3, 0.2, 1.0
VALIDATE_EVERY = 4  # batches of a worker, if there are two


class Numbered(Dataset[tuple[Tensor, Tensor]]):
    """Samples that come with their number."""

    def __init__(self, size: int) -> None:
        self.x = torch.randn(size, 4, generator=torch.Generator().manual_seed(size))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor(index), self.x[index]


class Net(pl.LightningModule):
    """A regression that writes down which samples it sees, in which epoch and batch, and when."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
        self.folder = folder

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with (self.folder / f"seen-{self.global_rank}").open("a") as file:
            file.write(
                f"{self.current_epoch} {batch_idx} {time.time():.3f}"
                f" {' '.join(map(str, batch[0].tolist()))}\n"
            )
        with (self.folder / f"steps-{self.global_rank}").open("a") as file:
            file.write(
                f"{self.began} {self.global_step} {self.current_epoch}"
                f" {' '.join(map(str, batch[0].tolist()))}\n"
            )
        time.sleep(ALONE_S if self.trainer.is_elastic and self.trainer.world_size == 1 else STEP_S)
        loss = nn.functional.mse_loss(self.net(batch[1]).squeeze(1), batch[1].sum(1))
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[1]).squeeze(1), batch[1].sum(1)))

    def on_fit_start(self) -> None:
        self.began = self.trainer.strategy.broadcast(time.time())
        if self.trainer.num_workers:
            where = ray.get_runtime_context().get_node_id()
            (self.folder / f"node-{ray.util.get_node_ip_address()}").write_text(where)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.02)


def fit(
    folder: str,
    num_workers: int | tuple[int, int] = 0,
    max_failures: int = 0,
    epochs: int = EPOCHS,
    validates: bool = False,
) -> dict[str, Tensor]:
    """Train, from the newest checkpoint if there is one, and return the weights.

    The run is in FOLDER/mlflow.db or where MLFLOW_TRACKING_URI says.
    """
    root = Path(folder)
    server = os.environ.get("MLFLOW_TRACKING_URI")
    pl.seed_everything(7, verbose=False)
    trainer = pl.Trainer(
        max_epochs=epochs,
        num_workers=num_workers or None,
        max_failures=max_failures,
        accelerator="cpu",
        default_root_dir=root,
        callbacks=[
            pl.callbacks.RecoveryCheckpoint(root / "recovery", every_n_steps=3, every_s=None)
        ],
        logger=(
            pl.MLFlowLogger(
                "two nodes",
                tracking_uri=server or f"sqlite:///{root}/mlflow.db",
                artifact_location=None if server else str(root / "mlruns"),
            )
            if num_workers
            else False
        ),
        log_every_n_steps=1,
        enable_model_summary=False,
        val_check_interval=VALIDATE_EVERY if validates else None,
        async_validation=pl.ValidationConfig(num_cpus=0) if validates and num_workers else False,
    )
    module = Net(root)
    loaders = [
        DataLoader(Numbered(NUM_SAMPLES), BATCH_SIZE, shuffle=True),
        DataLoader(Numbered(30), BATCH_SIZE) if validates else None,
    ]
    result = trainer.fit(module, *loaders, ckpt_path="last" if num_workers else None)
    if trainer.is_global_zero:
        torch.save(result.history, root / "history.pt")
    return dict(module.state_dict())


if __name__ == "__main__":
    elastic = list(map(int, sys.argv[3:]))
    weights = fit(
        sys.argv[1],
        num_workers=tuple([*elastic, 2][:2]) if elastic else 2,
        max_failures=0 if elastic else 3,
        epochs=int(sys.argv[2]),
        validates="VALIDATES" in os.environ,
    )
    torch.save(weights, Path(sys.argv[1]) / "end.tmp")
    (Path(sys.argv[1]) / "end.tmp").rename(Path(sys.argv[1]) / "end.pt")
