"""What users write (module, datamodule, callback, logger) and what all layers pass on (job, result, states).

From outside, any module may be imported. `LightningModule` and `LightningDataModule` are found here too, as in Lightning.
Never here: how any of it is executed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.runtime.lazy import attribute_loader

if TYPE_CHECKING:
    from raylit.core.datamodule import LightningDataModule
    from raylit.core.module import LightningModule

_PLACES = {"LightningDataModule": "raylit.core.datamodule", "LightningModule": "raylit.core.module"}

__all__ = ["LightningDataModule", "LightningModule"]

# Loaded when asked for: modules of this folder are imported by layers that stand below
# LightningModule.
__getattr__ = attribute_loader(__name__, _PLACES)
