"""A small convolutional network on scikit-learn's digits.

python -m examples.digits                   # in this process
python -m examples.digits 2                 # in two Ray workers
raylit fit --config configs/digits.yaml
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

import raylit as pl
from raylit.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint


class LitDigits(pl.LightningModule):
    def __init__(self, width: int = 32, lr: float = 3e-3, dropout: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(
                nn.Conv2d(width, 2 * width, 3, padding=1),
                nn.BatchNorm2d(2 * width),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(2),
            ),
            *(nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * width, 10)),
        )
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int, stage: str = "val") -> None:
        logits = self.net(batch[0])
        self.accuracy(logits, batch[1])
        self.log(f"{stage}_loss", nn.functional.cross_entropy(logits, batch[1]), prog_bar=True)
        self.log(f"{stage}_acc", self.accuracy, prog_bar=True)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, stage="test")

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0]).argmax(dim=1)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
        }


class DigitsData(pl.LightningDataModule):
    def __init__(self, batch_size: int = 32):
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        images, labels = map(torch.tensor, load_digits(return_X_y=True))
        digits = TensorDataset(images.float().reshape(-1, 1, 8, 8) / 16, labels)
        self.parts = random_split(digits, [1077, 360, 360], torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], batch_size=256)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], batch_size=256)

    predict_dataloader = test_dataloader


if __name__ == "__main__":
    pl.seed_everything(1)
    callbacks = [
        ModelCheckpoint(monitor="val_acc", mode="max"),
        EarlyStopping("val_loss", patience=4),
        LearningRateMonitor(),
    ]
    num_workers = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    trainer = pl.Trainer(
        max_epochs=15,
        num_workers=num_workers,
        log_every_n_steps=10,
        logger=pl.MLFlowLogger("digits"),
        callbacks=callbacks,
    )
    print(trainer.fit(LitDigits(), datamodule=DigitsData()).metrics)
    trainer.test(datamodule=DigitsData(), ckpt_path="best")
