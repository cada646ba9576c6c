"""Lightning's place for models and data small enough for any test."""

from raylit.testing.modules import BoringDataModule, BoringModel, RandomDataset

__all__ = ["BoringDataModule", "BoringModel", "RandomDataset"]
