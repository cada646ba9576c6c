"""Lightning's place for a small transformer of words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raylit import LightningModule

__all__ = ["LightningTransformer", "Transformer"]


class Transformer(nn.Module):
    """Maps words and the words before them to the next ones (Vaswani et al., 2017).

    Args:
        vocab_size: how many words there are.
        ninp: numbers for each word.
        nhead: heads of attention.
        nhid: width of the layers between.
        nlayers: layers of encoder and of decoder.
        dropout: share of numbers left out in training.
    """

    def __init__(
        self,
        vocab_size: int = 33278,
        ninp: int = 200,
        nhead: int = 2,
        nhid: int = 200,
        nlayers: int = 2,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.ninp = ninp
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, ninp)
        self.place = nn.Embedding(5000, ninp)
        self.transformer = nn.Transformer(
            d_model=ninp,
            nhead=nhead,
            num_encoder_layers=nlayers,
            num_decoder_layers=nlayers,
            dim_feedforward=nhid,
            dropout=dropout,
            batch_first=True,
        )
        self.decoder = nn.Linear(ninp, vocab_size)

    def forward(self, inputs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (batch, words) to logarithms of probabilities, (batch * words, vocab_size)."""
        length = inputs.shape[1]
        if mask is None:
            mask = nn.Transformer.generate_square_subsequent_mask(length).to(inputs.device)
        place = self.place(torch.arange(length, device=inputs.device))
        output = self.transformer(
            self.embedding(inputs) + place, self.embedding(target) + place, tgt_mask=mask
        )
        return torch.log_softmax(self.decoder(output), dim=-1).view(-1, self.vocab_size)


class LightningTransformer(LightningModule):
    """Trains a Transformer."""

    def __init__(self, vocab_size: int = 33278) -> None:
        super().__init__()
        self.model = Transformer(vocab_size=vocab_size)

    def forward(self, inputs: Tensor, target: Tensor) -> Tensor:
        """As Transformer."""
        output: Tensor = self.model(inputs, target)
        return output

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        inputs, target = batch
        return nn.functional.nll_loss(self(inputs, target), target.view(-1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.model.parameters(), lr=0.1)
