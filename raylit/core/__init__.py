"""The contracts of users' classes, and the objects that all layers pass on.

Users write a module, a datamodule, callbacks and loggers; `trainer.py` says how these see the
Trainer. Passed on are `job.py` (with the seam between the engine and the launchers), `progress.py`,
`states.py` and `optimizer.py`. From outside, any module may be imported; `LightningModule` and
`LightningDataModule` are found here too, as in Lightning. Never here: how any of it is executed.
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
