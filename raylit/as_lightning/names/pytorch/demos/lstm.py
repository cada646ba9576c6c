"""A language model on an LSTM, small enough for any test."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

import raylit

Hidden = tuple[Tensor, Tensor]


class SimpleLSTM(nn.Module):
    """Tells of each word of a text how probable each next one is.

    Args:
        vocab_size: number of words there are.
        ninp: size of their embeddings.
        nhid: size of the state.
        nlayers: number of layers.
        dropout: part of the numbers between layers that is left out in training.
    """

    def __init__(
        self,
        vocab_size: int = 33278,
        ninp: int = 512,
        nhid: int = 512,
        nlayers: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.nlayers = nlayers
        self.nhid = nhid
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(vocab_size, ninp)
        self.rnn = nn.LSTM(ninp, nhid, nlayers, dropout=dropout, batch_first=True)
        self.decoder = nn.Linear(nhid, vocab_size)

    def forward(self, input: Tensor, hidden: Hidden) -> tuple[Tensor, Hidden]:
        """Return log probabilities, (batch x words, vocabulary), and the state after them."""
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        scores = self.decoder(self.drop(output)).view(-1, self.vocab_size)
        return torch.log_softmax(scores, dim=1), hidden

    def init_hidden(self, batch_size: int) -> Hidden:
        """Return the state before the first word."""
        weight = next(self.parameters())
        shape = (self.nlayers, batch_size, self.nhid)
        return weight.new_zeros(shape), weight.new_zeros(shape)


class SequenceSampler(Sampler[int]):
    """Gives the samples of a text in an order in which each batch goes on where the last ended."""

    def __init__(self, dataset: Dataset[object], batch_size: int) -> None:
        super().__init__()
        self.dataset = dataset
        self.batch_size = batch_size
        self.chunk_size = len(dataset) // batch_size  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[int]]:  # type: ignore[override]
        for number in range(self.chunk_size):
            yield [number + row * self.chunk_size for row in range(self.batch_size)]

    def __len__(self) -> int:
        return self.chunk_size


class LightningLSTM(raylit.LightningModule):
    """Trains a SimpleLSTM, with the state carried from batch to batch."""

    def __init__(self, vocab_size: int = 33278) -> None:
        super().__init__()
        self.model = SimpleLSTM(vocab_size=vocab_size)
        self.hidden: Hidden | None = None

    def on_train_epoch_end(self) -> None:
        """Forget the state: the next epoch begins at the start of the text."""
        self.hidden = None

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of texts and of the same moved by one word."""
        words, target = batch
        if self.hidden is None:
            self.hidden = self.model.init_hidden(words.size(0))
        hidden = self.hidden[0].detach(), self.hidden[1].detach()
        output, self.hidden = self.model(words, hidden)
        loss = nn.functional.nll_loss(output, target.view(-1))
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=20.0)
