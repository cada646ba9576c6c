"""A fit that can be killed at any time and started again: python train.py FOLDER SEED.

It appends a line to FOLDER/steps for every batch.

With the variables that torchrun sets it is one of several ranks.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import raylit as pl

EPOCHS, STEP_S = 4, 0.01


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Samples that are augmented at random, with all three generators."""

    def __init__(self, size: int) -> None:
        self.x = torch.randn(size, 4, generator=torch.Generator().manual_seed(size))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = self.x[index]
        return (
            x + 0.1 * torch.randn(4) + 0.1 * float(np.random.randn()) + 0.1 * random.random(),
            x.sum(),
        )


class Net(pl.LightningModule):
    """A regression with dropout, trained with a moving average of its weights."""

    def __init__(self, steps: Path) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))
        self.steps = steps

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0]).squeeze(1), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        with self.steps.open("a") as file:
            file.write(f"{self.trainer.progress.total_batches}\n")
        time.sleep(STEP_S)
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        time.sleep(STEP_S)
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def main(folder: Path, seed: int) -> None:
    """Train to the end, from the newest checkpoint if there is one."""
    pl.seed_everything(seed, verbose=False)
    callbacks = [
        pl.callbacks.RecoveryCheckpoint(every_n_steps=1, every_s=0.2),
        pl.callbacks.ModelCheckpoint(folder / "checkpoints", every_n_train_steps=4, save_last=True),
        pl.callbacks.EarlyStopping("val_loss", patience=50),
        pl.callbacks.EMAWeightAveraging(decay=0.8),
    ]
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=callbacks,
        logger=pl.loggers.CSVLogger(folder, name="", version=0),
        log_every_n_steps=1,
        val_check_interval=5,
        accumulate_grad_batches=2,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Net(folder / "steps")
    train = DataLoader(Noisy(60), batch_size=4, shuffle=True, num_workers=2)
    trainer.fit(module, train, DataLoader(Noisy(8), batch_size=4), ckpt_path="last")
    if not trainer.is_global_zero:
        return
    torch.save(
        {"weights": module.state_dict(), "loss": trainer.callback_metrics["loss"]},
        folder / "end.tmp",
    )
    (folder / "end.tmp").rename(folder / "end.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
