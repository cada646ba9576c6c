"""Classify images that lie in Parquet, as tensors of one shape.

python -m examples.digit_images digits.parquet
raylit fit --config configs/digit_images.yaml
"""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import raylit as pl


class LitImages(pl.LightningModule):
    """A small convolutional network."""

    def __init__(self, width: int = 32, lr: float = 3e-3):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.MaxPool2d(2), nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8 * width, 10)),
        )

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image[:, None].float() / 16)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch["image"]), batch["label"])
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        is_right = self(batch["image"]).argmax(1) == batch["label"]
        self.log("val_acc", is_right.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def write(path: str) -> None:
    """Write scikit-learn's digits, 8 x 8 pixels of 0 to 16, with their labels."""
    digits = load_digits()
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(digits.images.astype(np.uint8))
    table = pa.table({"image": images, "label": digits.target})
    pq.write_table(table, path, row_group_size=256)
    print(f"{path}: {table.num_rows:,} images")


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else "digits.parquet")
