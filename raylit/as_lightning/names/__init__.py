"""Lightning's name for itself: `import lightning as L`."""

from __future__ import annotations

from raylit.as_lightning.names import pytorch
from raylit.as_lightning.names.pytorch import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    __version__,
    seed_everything,
)
from raylit.runtime.lazy import attribute_loader

__all__ = [
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "Trainer",
    "__version__",
    "pytorch",
    "seed_everything",
]

_others = attribute_loader("lightning")


def __getattr__(name: str) -> object:
    if name == "Fabric":
        raise AttributeError(
            "raylit, which stands in for Lightning, has no Fabric: write the loop in plain PyTorch,"
            " or as a LightningModule."
        )
    return _others(name)
