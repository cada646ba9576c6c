"""Predict what a diamond costs, from a Parquet table of numbers and categories.

python -m examples.diamonds diamonds.parquet
raylit fit --config configs/diamonds.yaml

The first writes the table of 53,940 diamonds that the package plotnine brings (pip install
--no-deps plotnine), the second trains on it.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import raylit as pl
from raylit.data.arrow.convert import convert

NUMBERS = ("carat", "depth", "table", "x", "y", "z")


class LitDiamonds(pl.LightningModule):
    """Numbers as they are, an embedding for each category; learns the logarithm of the price.

    Args:
        sizes: of each category, its number of values and one for those that training never saw.
    """

    def __init__(self, sizes: dict[str, int], width: int = 64, lr: float = 3e-3):
        super().__init__()
        self.save_hyperparameters()
        self.codes = nn.ModuleDict({name: nn.Embedding(size, 4) for name, size in sizes.items()})
        self.net = nn.Sequential(
            *(nn.Linear(len(NUMBERS) + 4 * len(sizes), width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)),
        )

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        numbers = torch.stack([batch[name] for name in NUMBERS], 1)
        codes = [codes(batch[name]) for name, codes in self.codes.items()]
        return 7.5 + self.net(torch.cat([numbers, *codes], 1)).squeeze(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch), batch["price"].log())
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, stage: str = "val") -> None:
        price = self(batch).exp()
        self.log(f"{stage}_loss", nn.functional.mse_loss(price.log(), batch["price"].log()))
        self.log(f"{stage}_error", (price / batch["price"] - 1).abs().mean(), prog_bar=True)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, stage="test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self(batch).exp()

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.8)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def write(path: str) -> None:
    """Write the table of plotnine as Parquet.

    The package itself is not imported, nor what it needs.
    """
    found = importlib.util.find_spec("plotnine")
    if found is None or found.origin is None:
        raise SystemExit("The table is in the package plotnine: pip install --no-deps plotnine")
    source = Path(found.origin).parent / "data" / "diamonds.csv"
    rows, groups = convert(str(source), path, row_group_size=8192, force=True)
    print(f"{path}: {rows:,} diamonds in {groups} row groups")


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else "diamonds.parquet")
