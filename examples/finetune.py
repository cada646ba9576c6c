"""Teach a network that knows printed characters to read handwritten digits, from ten of each.

python -m examples.glyphs                       # the network that is gone on with, glyphs.ckpt
python -m examples.finetune glyphs.ckpt         # prints both accuracies, ends with finetune.png
raylit fit --config configs/finetune.yaml

First the new head alone learns, with the image encoder of examples/glyphs.py frozen; then the
encoder thaws, with learning rates that fall from its last layer to its first. The same network from
random weights, with the same data and epochs, is what it is compared with.
"""

import sys
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from examples.glyph_data import SIZE
from examples.glyphs import ImageEncoder, LitGlyphs
from raylit.callbacks import BackboneFinetuning, Callback


class LayerwiseFinetuning(BackboneFinetuning):
    """Thaws the backbone at an epoch, with a learning rate for each of its layers.

    Args:
        epoch: at which it thaws.
        decay: what the rate of a layer is multiplied by for the layer before it.
    """

    def __init__(self, epoch: int = 3, decay: float = 0.7):
        super().__init__(unfreeze_backbone_at_epoch=epoch, verbose=False)
        self.decay = decay

    def finetune_function(
        self, pl_module: pl.LightningModule, epoch: int, optimizer: Optimizer
    ) -> None:
        if epoch != self.unfreeze_backbone_at_epoch:
            return
        rate = optimizer.param_groups[0]["lr"]
        assert isinstance(pl_module.backbone, nn.Sequential)
        for depth, layer in enumerate(reversed(pl_module.backbone), start=1):
            self.unfreeze_and_add_param_group(
                layer, optimizer, lr=rate * self.decay**depth, initial_denom_lr=1
            )


class LitFewDigits(pl.LightningModule):
    """The image encoder of examples/glyphs.py and a head for ten digits.

    Args:
        checkpoint: of LitGlyphs; None: random weights.
        lr: of the head.
    """

    def __init__(self, checkpoint: str | None = None, lr: float = 3e-3):
        super().__init__()
        self.save_hyperparameters()
        self.backbone = ImageEncoder()
        if checkpoint is not None:
            self.backbone = LitGlyphs.load_from_checkpoint(checkpoint).image
        self.head = nn.Sequential(nn.LayerNorm(128), nn.Linear(128, 10))

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        shift = torch.randint(-2, 3, (2,)).tolist()
        loss = nn.functional.cross_entropy(self(batch[0].roll(shift, (2, 3))), batch[1])
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(
        self, batch: list[Tensor], batch_idx: int, stage: str = "val"
    ) -> dict[str, Tensor]:
        logits = self(batch[0])
        self.log(f"{stage}_acc", (logits.argmax(1) == batch[1]).float().mean(), prog_bar=True)
        return {"logits": logits, "label": batch[1]}

    def test_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.validation_step(batch, batch_idx, "test")

    def configure_optimizers(self) -> Optimizer:
        trained = [one for one in self.parameters() if one.requires_grad]
        return torch.optim.AdamW(trained, lr=self.hparams.lr, weight_decay=0.01)


class FewDigits(pl.LightningDataModule):
    """Scikit-learn's digits, enlarged: some of each to learn from, 300 to watch, others to test."""

    def __init__(self, num_labels: int = 10, seed: int = 0, batch_size: int = 20):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage: str) -> None:
        images, labels = map(torch.tensor, load_digits(return_X_y=True))
        images = images.float().view(-1, 1, 8, 8) / 16
        images = nn.functional.pad(images, (1, 1, 1, 1))
        images = nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear")
        order = torch.randperm(
            len(labels), generator=torch.Generator().manual_seed(self.hparams.seed)
        )
        few = torch.cat(
            [order[labels[order] == digit][: self.hparams.num_labels] for digit in range(10)]
        )
        rest = order[~torch.isin(order, few)]
        self.parts = [
            TensorDataset(images[part], labels[part]) for part in (few, rest[:300], rest[300:])
        ]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], 512)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], 512)


def compare(
    checkpoint: str, seeds: Sequence[int] = (0, 1, 2), max_epochs: int = 20
) -> dict[str, list[float]]:
    """Return test accuracies, with the checkpoint and from random weights, for several labels."""
    found: dict[str, list[float]] = {"pretrained": [], "from nothing": []}
    for seed in seeds:
        for name, start in (("pretrained", checkpoint), ("from nothing", None)):
            pl.seed_everything(seed, verbose=False)
            thaws: list[Callback] = [LayerwiseFinetuning(max_epochs // 6)]
            trainer = pl.Trainer(
                max_epochs=max_epochs,
                check_val_every_n_epoch=10,
                logger=pl.MLFlowLogger("finetune", run_name=f"{name}, {seed}"),
                callbacks=thaws if start is not None else None,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            data = FewDigits(seed=seed)
            trainer.fit(LitFewDigits(start), datamodule=data)
            found[name].append(trainer.test(datamodule=data, verbose=False)[0]["test_acc"])
    return found


def picture(found: dict[str, list[float]]) -> Figure:
    """Draw both accuracies, a point for each choice of labels."""
    figure = Figure(figsize=(5, 2), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(found.values()):
        mean = sum(values) / len(values)
        axes.barh(row, mean, color="#4c9be8" if row == 0 else "#b8c4d0")
        axes.plot(values, [row] * len(values), "o", color="#1f2933", markersize=4)
        axes.text(0.42, row, f"{mean:.1%}", va="center", fontsize=9)
    axes.set_yticks(range(len(found)), found)
    axes.set_xlim(0.4, 1)
    axes.invert_yaxis()
    axes.set_title("right of 1,397 handwritten digits, from 10 labels of each", fontsize=9)
    return figure


if __name__ == "__main__":
    found = compare(sys.argv[1] if len(sys.argv) > 1 else "glyphs.ckpt")
    print({name: [round(value, 4) for value in values] for name, values in found.items()})
    picture(found).savefig("finetune.png", dpi=110)
