"""Recognise a character by its image, its name, its entry in the Unicode tables, or some of these.

python -m examples.glyphs                       # ends with glyphs.ckpt and the picture glyphs.png
raylit fit --config configs/glyphs.yaml

730 characters in fonts that were never seen (examples/glyph_data.py), with noise in the image, half
of the words missing in the name, and one modality or two left out altogether. In training each is
left out now and then. Names are aligned with images and tables by contrast, so that they find them.
"""

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import raylit as pl
from examples.glyph_data import GlyphData, Glyphs, characters, codes, names, spoilt, vocabulary
from raylit.callbacks import ModelCheckpoint

SUBSETS = {
    "all": (0, 1, 2),
    "no_image": (1, 2),
    "no_name": (0, 2),
    "no_table": (0, 1),
    "image": (0,),
    "name": (1,),
    "table": (2,),
}


class ImageEncoder(nn.Sequential):
    """Images (n, 1, 24, 24) to (n, width). examples/finetune.py goes on with it."""

    def __init__(self, width: int = 128):
        layers: list[nn.Module] = []
        for before, after in ((1, 32), (32, 64), (64, 64)):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
            layers.append(nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU()))
        super().__init__(*layers, nn.Sequential(nn.Flatten(), nn.Linear(64 * 9, width)))


class LitGlyphs(pl.LightningModule):
    """Three encoders, aligned by contrast and fused late."""

    def __init__(self, width: int = 128, lr: float = 3e-3, missing: float = 0.3):
        super().__init__()
        self.save_hyperparameters()
        self.image = ImageEncoder(width)
        self.word = nn.Embedding(len(vocabulary()) + 1, width, padding_idx=0)
        self.name = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        sizes = (codes().amax(0) + 1).tolist()
        self.code = nn.ModuleList([nn.Embedding(size, 24) for size in sizes])
        self.table = nn.Sequential(nn.Linear(49, width), nn.ReLU(), nn.Linear(width, width))
        self.placeholder = nn.Parameter(torch.zeros(3, width))  # of a modality that is missing
        self.head = nn.Sequential(
            nn.Linear(3 * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, len(characters()))
        )
        self.temperature = nn.Parameter(torch.tensor(2.5))

    def encode_name(self, words: Tensor) -> Tensor:
        number = (words > 0).sum(1, keepdim=True).clamp(min=1)
        return self.name(self.word(words).sum(1) / number)

    def encode(self, batch: Glyphs) -> Tensor:
        """Return what the encoders make of a batch, (n, 3, width)."""
        table = [code(batch.codes[:, index]) for index, code in enumerate(self.code)]
        table = self.table(torch.cat([*table, batch.width], 1))
        parts = [self.image(batch.image), self.encode_name(batch.words), table]
        return nn.functional.layer_norm(torch.stack(parts, 1), parts[0].shape[1:])

    def fuse(self, parts: Tensor, present: Tensor) -> Tensor:
        """Return logits; `present` (n, 3) says which modalities are there."""
        return self.head(torch.where(present[..., None], parts, self.placeholder).flatten(1))

    def query(self, parts: Tensor, present: Tensor) -> Tensor:
        """Return what finds a name: the sum of image and table, as far as they are there."""
        both = (parts * present[..., None])[:, [0, 2]].sum(1)
        return nn.functional.normalize(both, dim=1)

    def forward(self, batch: Glyphs) -> Tensor:
        parts = self.encode(batch)
        return self.fuse(parts, torch.ones(parts.shape[:2], dtype=torch.bool, device=parts.device))

    def training_step(self, batch: Glyphs, batch_idx: int) -> Tensor:
        parts = self.encode(spoilt(batch))
        present = torch.rand(parts.shape[:2], device=parts.device) > self.hparams.missing
        present[torch.arange(len(present)), torch.randint(3, (len(present),))] = True
        loss = nn.functional.cross_entropy(self.fuse(parts, present), batch.label)
        seen = present[:, [0, 2]].any(1)
        name = nn.functional.normalize(self.encode_name(batch.words), dim=1)
        scores = self.query(parts, present) @ name.T * self.temperature.exp()
        # The same character in another font is no wrong one
        same = batch.label[:, None] == batch.label
        wanted = same / same.sum(1, keepdim=True)
        contrast = nn.functional.cross_entropy(scores[seen], wanted[seen])
        contrast = (contrast + nn.functional.cross_entropy(scores[seen].T, wanted[seen].T)) / 2
        self.log_dict({"train_loss": loss, "train_contrast": contrast}, prog_bar=True)
        return loss + contrast

    def validation_step(self, batch: Glyphs, batch_idx: int) -> dict[str, Tensor]:
        return self.judge(batch, batch_idx, "val", ("all",))

    def test_step(self, batch: Glyphs, batch_idx: int) -> dict[str, Tensor]:
        return self.judge(batch, batch_idx, "test", tuple(SUBSETS))

    def judge(
        self, batch: Glyphs, seed: int, stage: str, subsets: tuple[str, ...]
    ) -> dict[str, Tensor]:
        parts = self.encode(spoilt(batch, seed))
        gallery = nn.functional.normalize(self.encode_name(names().to(self.device)), dim=1)
        for name in subsets:
            present = torch.zeros(parts.shape[:2], dtype=torch.bool, device=parts.device)
            present[:, list(SUBSETS[name])] = True
            right = self.fuse(parts, present).argmax(1) == batch.label
            self.log(f"{stage}_acc_{name}", right.float().mean(), prog_bar=name == "all")
            if name in ("all", "image", "table"):
                nearest = (self.query(parts, present) @ gallery.T).topk(5).indices
                found = (nearest == batch.label[:, None]).any(1).float().mean()
                self.log(f"{stage}_recall5_{name}", found, prog_bar=name == "all")
        return {"logits": self.fuse(parts, torch.ones_like(present)), "label": batch.label}

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def picture(metrics: dict[str, float]) -> Figure:
    """Draw the accuracy with all modalities and without some, and the recall of names."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    found = dict.fromkeys(("all", "image", "table"))
    for axes, kind, shown, title in zip(
        figure.subplots(1, 2, width_ratios=[7, 3]),
        ("acc", "recall5"),
        ([*SUBSETS], [*found]),
        ("right of 730 characters, new fonts", "name among the first 5"),
        strict=True,
    ):
        labels = [name.replace("_", " ") for name in shown]
        if kind == "recall5":
            labels[0] = "image + table"
        values = [metrics[f"test_{kind}_{name}"] for name in shown]
        bars = axes.barh(labels, values, color=["#4c9be8", *["#b8c4d0"] * (len(shown) - 1)])
        axes.bar_label(bars, [f"{value:.0%}" for value in values], fontsize=8, padding=2)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.15)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
    return figure


if __name__ == "__main__":
    pl.seed_everything(1)
    saver = ModelCheckpoint(monitor="val_acc_all", mode="max")
    trainer = pl.Trainer(max_epochs=12, logger=pl.MLFlowLogger("glyphs"), callbacks=[saver])
    trainer.fit(LitGlyphs(), datamodule=GlyphData())
    metrics = trainer.test(datamodule=GlyphData(), ckpt_path="best")[0]
    trainer.save_checkpoint("glyphs.ckpt")
    picture(metrics).savefig("glyphs.png", dpi=110)
