"""The text of Python's `help()` as tokens: the data of examples/lm.py.

79 topics in the package pydoc_data; the last tenth of them is never trained on. The tokens are
pairs of characters, pairs of those and so on, as often as they stand in the training text.
"""

import functools
import re
from collections import Counter
from itertools import pairwise
from pydoc_data.topics import topics

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl

TOPICS = list(topics)
NUM_TRAINED = len(TOPICS) * 9 // 10  # topics, of 79
TRAIN = "".join(topics[name] for name in TOPICS[:NUM_TRAINED])
VAL = "".join(topics[name] for name in TOPICS[NUM_TRAINED:])
LETTERS = "".join(sorted({*TRAIN, *VAL}))


@functools.cache
def merges(number: int) -> tuple[list[str], dict[tuple[int, int], int]]:
    """Byte pair encoding of the training text: the tokens, and which pairs become which token.

    Source: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909.
    """
    tokens = [*LETTERS]
    words = Counter(_words(TRAIN))
    split = {word: [LETTERS.index(char) for char in word] for word in words}
    pairs: dict[tuple[int, int], int] = {}
    counts: Counter[tuple[int, int]] = Counter()
    for word, parts in split.items():
        counts.update({pair: words[word] * n for pair, n in Counter(pairwise(parts)).items()})
    while len(tokens) < number:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        pairs[best] = len(tokens)
        for word, parts in split.items():
            if best[0] in parts and best in pairwise(parts):
                split[word] = _merged(parts, best, len(tokens))
                for pair in pairwise(parts):
                    counts[pair] -= words[word]
                for pair in pairwise(split[word]):
                    counts[pair] += words[word]
        tokens.append(tokens[best[0]] + tokens[best[1]])
    return tokens, pairs


def _words(text: str) -> list[str]:
    """Split a text where tokens begin: at words with the space before them, at runs of others."""
    return re.findall(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+", text)


def _merged(parts: list[int], pair: tuple[int, int], token: int) -> list[int]:
    found: list[int] = []
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] = token
        else:
            found.append(part)
    return found


def encode(text: str, number: int) -> Tensor:
    """Return the tokens of a text."""
    _, pairs = merges(number)

    @functools.cache
    def of_word(word: str) -> list[int]:
        parts = [LETTERS.index(char) for char in word]
        while best := min(
            (pair for pair in pairwise(parts) if pair in pairs), key=pairs.__getitem__, default=None
        ):
            parts = _merged(parts, best, pairs[best])
        return parts

    return torch.tensor([part for word in _words(text) for part in of_word(word)])


class Topics(pl.LightningDataModule):
    """Windows of `length + 1` tokens; in training they begin anywhere."""

    def __init__(self, num_tokens: int = 1024, length: int = 128, batch_size: int = 4):
        super().__init__()
        self.save_hyperparameters()

    def windows(self, text: str, stride: int) -> TensorDataset:
        tokens = encode(text, self.hparams.num_tokens)
        length = self.hparams.length + 1
        tokens = torch.cat([tokens, tokens.new_full((-(len(tokens) - length) % stride,), -100)])
        return TensorDataset(tokens.unfold(0, length, stride))

    def train_dataloader(self) -> DataLoader:
        windows = self.windows(TRAIN, self.hparams.length // 4)
        return DataLoader(windows, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.windows(VAL, self.hparams.length), 32)
