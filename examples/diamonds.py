"""Predict what a diamond costs, from a Parquet table of numbers and categories.

python -m examples.diamonds diamonds.parquet     # writes the table
raylit fit --config configs/diamonds.yaml
raylit tune --config configs/diamonds.yaml --auto 10m
python -m examples.diamonds importance           # ends with diamonds.png

The table, 53,940 diamonds, is that of the package plotnine (pip install --no-deps plotnine). A
tenth of it is held out. The importance of a column is how much of the explained variance is lost
when its values are dealt out anew among the diamonds (Breiman 2001,
https://doi.org/10.1023/A:1010933404324).
"""

import importlib.util
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import R2Score

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
        self.r2 = R2Score()  # of the logarithm

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        numbers = torch.stack([batch[name] for name in NUMBERS], 1)
        codes = [codes(batch[name]) for name, codes in self.codes.items()]
        return 7.5 + self.net(torch.cat([numbers, *codes], 1)).squeeze(1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.mse_loss(self(batch), batch["price"].log())
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, stage: str = "val") -> None:
        found, truth = self(batch), batch["price"].log()
        self.r2(found, truth)
        self.log(f"{stage}_loss", nn.functional.mse_loss(found, truth))
        self.log(f"{stage}_r2", self.r2, prog_bar=True)
        self.log(f"{stage}_error", ((found - truth).exp() - 1).abs().mean(), prog_bar=True)

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


@torch.no_grad()
def importance(model: LitDiamonds, batch: dict[str, Tensor]) -> dict[str, float]:
    """Return how much R2 is lost when a column is dealt out anew, the most important first."""
    truth = batch["price"].log()

    def r2(changed: dict[str, Tensor]) -> float:
        return 1 - float((model(batch | changed) - truth).square().mean() / truth.var())

    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))
    whole = r2({})
    lost = {name: whole - r2({name: batch[name][order]}) for name in (*NUMBERS, *model.codes)}
    return dict(sorted(lost.items(), key=lambda item: -item[1]))


def picture(lost: dict[str, float]) -> Figure:
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([*lost], [*lost.values()], color="#4c9be8")
    axes.bar_label(bars, [f"{value:.3f}" for value in lost.values()], fontsize=8, padding=2)
    axes.set_xlim(0, max(lost.values()) * 1.15)
    axes.invert_yaxis()
    axes.set_title("R2 of the log price that is lost without a column", fontsize=9)
    axes.tick_params(labelsize=8)
    return figure


def explain() -> None:
    """Train as the config says, test, and draw what the model goes by."""
    from raylit.cli import LightningCLI

    cli = LightningCLI(args=["--config", "configs/diamonds.yaml"], run=False)
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    cli.trainer.test(datamodule=cli.datamodule, ckpt_path="best")
    batches = list(cli.datamodule.test_dataloader())
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    picture(importance(cli.model.eval(), whole)).savefig("diamonds.png", dpi=110)


if __name__ == "__main__":
    argument = sys.argv[1] if len(sys.argv) > 1 else "diamonds.parquet"
    explain() if argument == "importance" else write(argument)
