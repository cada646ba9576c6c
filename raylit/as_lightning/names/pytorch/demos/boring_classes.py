"""Lightning's place for models and data small enough for any test."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from raylit import LightningDataModule, LightningModule
from raylit.testing.modules import BoringDataModule, BoringModel, RandomDataset

__all__ = [
    "BoringDataModule",
    "BoringDataModuleNoLen",
    "BoringModel",
    "DemoModel",
    "IterableBoringDataModule",
    "ManualOptimBoringModel",
    "Net",
    "RandomDataset",
    "RandomDictDataset",
    "RandomIterableDataset",
    "RandomIterableDatasetWithLen",
]


class RandomDictDataset(Dataset[dict[str, Tensor]]):
    """Samples with two tensors, `a` and `b`; the second is the first plus 1."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"a": self.data[index], "b": self.data[index] + 1}

    def __len__(self) -> int:
        return self.len


class RandomIterableDataset(IterableDataset[Tensor]):
    """A stream of `count` samples of `size` numbers."""

    def __init__(self, size: int, count: int) -> None:
        self.count = count
        self.size = size

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """A stream that tells how long it is."""

    def __len__(self) -> int:
        return self.count


class BoringDataModuleNoLen(LightningDataModule):
    """Streams of random numbers for every stage, none of which tells its length."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        """64 samples."""
        return DataLoader(RandomIterableDataset(32, 64))

    def val_dataloader(self) -> DataLoader[Tensor]:
        """64 samples."""
        return DataLoader(RandomIterableDataset(32, 64))

    def test_dataloader(self) -> DataLoader[Tensor]:
        """64 samples."""
        return DataLoader(RandomIterableDataset(32, 64))

    def predict_dataloader(self) -> DataLoader[Tensor]:
        """64 samples."""
        return DataLoader(RandomIterableDataset(32, 64))


class IterableBoringDataModule(LightningDataModule):
    """Two streams for every stage, made in `setup`."""

    def setup(self, stage: str) -> None:
        """Make the streams of a stage."""
        self.datasets = [RandomIterableDataset(4, 10), RandomIterableDataset(4, 20)]

    def train_dataloader(self) -> DataLoader[Tensor]:
        """The longer stream."""
        return DataLoader(self.datasets[1], batch_size=2)

    def val_dataloader(self) -> list[DataLoader[Tensor]]:
        """Both."""
        return [DataLoader(one, batch_size=2) for one in self.datasets]

    test_dataloader = predict_dataloader = val_dataloader


class ManualOptimBoringModel(BoringModel):
    """A BoringModel that steps its optimizer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One batch, with the backward pass and the step in it."""
        optimizer = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class DemoModel(LightningModule):
    """One layer of the size of its arguments, with a rectifier."""

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(32, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 32) to (batch, out_dim)."""
        return torch.relu(self.l1(x.view(x.size(0), -1)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """The sum of the outputs."""
        loss: Tensor = self(batch).sum()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Net(nn.Module):
    """A small network for images of 28 by 28 numbers, of 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 1, 28, 28) to logarithms of probabilities (batch, 10)."""
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        x = self.dropout1(torch.max_pool2d(x, 2).flatten(1))
        x = self.fc2(self.dropout2(torch.relu(self.fc1(x))))
        return torch.log_softmax(x, dim=1)
