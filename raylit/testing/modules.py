"""Models and data small enough for any test.

The names with `Boring` are those of `lightning.pytorch.demos.boring_classes`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from raylit.core.datamodule import LightningDataModule
from raylit.core.module import LightningModule
from raylit.runtime.aliases import Batch, Loaders, OptimizerLRScheduler, StepOutput


class RandomDataset(Dataset[Tensor]):
    """Standard normal numbers, the same in every process.

    Args:
        size: numbers in a sample.
        length: samples.
        seed: other seeds give other numbers.

    Example:
        >>> RandomDataset(32, 64)[0].shape
        torch.Size([32])
    """

    def __init__(self, size: int, length: int, seed: int = 0) -> None:
        self.data = torch.randn(length, size, generator=torch.Generator().manual_seed(seed))

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return len(self.data)


class BoringModel(LightningModule):
    """One linear layer, 32 to 2, that learns to answer 1; it logs nothing and brings its own data.

    Override the methods that a test is about.

    Example:
        >>> Trainer(max_epochs=1).fit(BoringModel())
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 32) to (batch, 2)."""
        output: Tensor = self.layer(x)
        return output

    def loss(self, preds: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the mean squared distance from `labels`, or from 1."""
        return nn.functional.mse_loss(preds, torch.ones_like(preds) if labels is None else labels)

    def step(self, batch: Batch) -> Tensor:
        """Return the loss of one batch."""
        return self.loss(self(batch))

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """One batch of training."""
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """One batch of validation."""
        return {"x": self.step(batch)}

    def test_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """One batch of test."""
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD, whose learning rate falls to a tenth in each epoch."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> Loaders:
        """64 batches of one sample."""
        return DataLoader(RandomDataset(32, 64))

    def val_dataloader(self) -> Loaders:
        """64 batches of one sample."""
        return DataLoader(RandomDataset(32, 64, seed=1))

    def test_dataloader(self) -> Loaders:
        """64 batches of one sample."""
        return DataLoader(RandomDataset(32, 64, seed=2))

    def predict_dataloader(self) -> Loaders:
        """64 batches of one sample."""
        return DataLoader(RandomDataset(32, 64, seed=3))


class TinyModel(BoringModel):
    """A BoringModel that draws random numbers and logs `train_loss`, `val_loss`, `test_loss`.

    It has 4 batches of each kind.

    Args:
        batch_size: samples in a batch.
    """

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 32) to (batch, 2)."""
        return super().forward(self.dropout(x))

    def training_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """One batch of training."""
        loss = self.step(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """One batch of validation."""
        self.log("val_loss", self.step(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """One batch of test."""
        self.log("test_loss", self.step(batch))

    def _loader(self, seed: int) -> DataLoader[Tensor]:
        return DataLoader(RandomDataset(32, 4 * self.batch_size, seed), batch_size=self.batch_size)

    def train_dataloader(self) -> Loaders:
        """4 batches."""
        return self._loader(0)

    def val_dataloader(self) -> Loaders:
        """4 batches."""
        return self._loader(1)

    def test_dataloader(self) -> Loaders:
        """4 batches."""
        return self._loader(2)

    def predict_dataloader(self) -> Loaders:
        """4 batches."""
        return self._loader(3)


class BoringDataModule(LightningDataModule):
    """The data of a BoringModel: 64 samples for each stage, in batches of one."""

    def __init__(self) -> None:
        super().__init__()
        self.random_full = RandomDataset(32, 64 * 4)

    random_train: Subset[Tensor]
    random_val: Subset[Tensor]
    random_test: Subset[Tensor]
    random_predict: Subset[Tensor]

    def setup(self, stage: str) -> None:
        """Take the samples of a stage, for a fit those of validation too."""
        stages = {"fit": ("train", "val"), "validate": ("val",)}.get(stage, (stage,))
        for number, name in enumerate(("train", "val", "test", "predict")):
            if name in stages:
                part = Subset(self.random_full, range(64 * number, 64 * (number + 1)))
                setattr(self, f"random_{name}", part)

    def train_dataloader(self) -> Loaders:
        """64 batches of one sample."""
        return DataLoader(self.random_train)

    def val_dataloader(self) -> Loaders:
        """64 batches of one sample."""
        return DataLoader(self.random_val)

    def test_dataloader(self) -> Loaders:
        """64 batches of one sample."""
        return DataLoader(self.random_test)

    def predict_dataloader(self) -> Loaders:
        """64 batches of one sample."""
        return DataLoader(self.random_predict)
