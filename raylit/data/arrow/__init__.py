"""Parquet, Arrow IPC, CSV and JSON lines as batches of tensors; the only place for pyarrow.

From outside, import `ArrowDataset`, `ArrowLoader`, `ParquetDataModule`; the command line also takes
`convert` and `describe`. Never belongs here: samplers of torch's loaders, ray.data, and anything
that the loop does.
"""

from raylit.data.arrow.datamodule import ParquetDataModule
from raylit.data.arrow.dataset import ArrowDataset
from raylit.data.arrow.loader import ArrowLoader

__all__ = ["ArrowDataset", "ArrowLoader", "ParquetDataModule"]
