"""A small GPT that writes like Python's reference manual.

python -m examples.lm                            # ends with the picture lm.png
raylit fit --config configs/lm.yaml
raylit fit --config configs/lm.yaml --trainer.num_workers 2 --trainer.strategy fsdp    # or ddp
raylit fit --config configs/lm.yaml --trainer.precision bf16-mixed --trainer.compile true
raylit fit --config configs/lm.yaml --resume     # goes on where a fit was killed, bit for bit

Bits per character are those of topics never seen (examples/lm_data.py), and compare between
tokenizers. bf16 is fast on a GPU, and compile pays where a fit lasts longer than its minute.
"""

import math

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import raylit as pl
from examples.lm_data import Topics, encode, merges
from raylit.callbacks import ModelCheckpoint, TextLogger


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, self.num_heads, -1)
        q, k, v = self.qkv(self.norms[0](x)).view(shape).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class GPT(pl.LightningModule):
    """A decoder of transformer blocks, with the embedding as its last layer."""

    def __init__(
        self,
        num_tokens: int = 1024,
        width: int = 128,
        num_blocks: int = 4,
        num_heads: int = 4,
        length: int = 128,
        lr: float = 3e-3,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.token = nn.Embedding(num_tokens, width)
        self.place = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(num_blocks)))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.token.weight, std=width**-0.5)  # so that logits begin at about 1
        nn.init.normal_(self.place.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        return self.norm(self.blocks(x)) @ self.token.weight.T

    def losses(self, window: Tensor) -> Tensor:
        """Return the loss of each token, 0 where there is none."""
        logits = self(window[:, :-1].clamp(min=0))
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), window[:, 1:].flatten(), reduction="none"
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.losses(batch[0]).sum() / (batch[0][:, 1:] >= 0).sum()
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        tokens, _ = merges(self.hparams.num_tokens)
        sizes = torch.tensor([len(token) for token in tokens], device=self.device)
        wanted = batch[0][:, 1:]
        num_chars = (sizes[wanted.clamp(min=0)] * (wanted >= 0)).sum()
        bits = self.losses(batch[0]).sum() / math.log(2)
        self.log("val_bpc", bits / num_chars, batch_size=int(num_chars), prog_bar=True)

    @torch.no_grad()
    def sample_text(self, start: str = "The ", number: int = 120) -> list[str]:
        """Write on from a start."""
        tokens, _ = merges(self.hparams.num_tokens)
        written = encode(start, self.hparams.num_tokens)[None].to(self.device)
        for _ in range(number):
            logits = self(written[:, -self.hparams.length :])[:, -1] / 0.8
            written = torch.cat([written, torch.multinomial(logits.softmax(1), 1)], 1)
        return ["".join(tokens[index] for index in written[0])]

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=self.hparams.lr, betas=(0.9, 0.98), weight_decay=0.1
        )
        steps = int(self.trainer.estimated_stepping_batches)
        warmup = max(1, steps // 20)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return (
                0.05 + 0.95 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
            )

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def picture(history: list[dict[str, float]], text: str) -> Figure:
    """Draw how the bits per character fell, and what the model writes."""
    figure = Figure(figsize=(7, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 4])
    points = [(row["step"], row["val_bpc"]) for row in history if "val_bpc" in row]
    left.plot(*zip(*points, strict=True), "o-", color="#4c9be8", markersize=4)
    left.set_xlabel("step", fontsize=8)
    left.set_title("bits per character, topics never seen", fontsize=9)
    left.tick_params(labelsize=8)
    right.axis("off")
    right.text(0, 1, text, fontsize=6, va="top", family="monospace", wrap=True)
    return figure


if __name__ == "__main__":
    pl.seed_everything(1)
    trainer = pl.Trainer(
        max_epochs=1,
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        val_check_interval=0.25,
        logger=pl.MLFlowLogger("lm"),
        callbacks=[ModelCheckpoint(monitor="val_bpc"), TextLogger("sample_text")],
    )
    model = GPT()
    result = trainer.fit(model, datamodule=Topics())
    print(result.metrics)
    picture(result.history, model.sample_text()[0]).savefig("lm.png", dpi=110)
