"""Lightning's path to `raylit.parallel.plugins`."""

from raylit.parallel.plugins import LayerSync, TorchSyncBatchNorm

__all__ = ["LayerSync", "TorchSyncBatchNorm"]
