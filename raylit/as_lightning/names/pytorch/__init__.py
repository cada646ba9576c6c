"""Lightning's name for raylit itself, with the version of the surface that it has."""

from __future__ import annotations

import logging

import raylit
from raylit import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from raylit.as_lightning.beside import names_of
from raylit.checkpoint.format import LIGHTNING_FORMAT as __version__

_logger = logging.getLogger("raylit")

__all__ = [
    "Callback",
    "LightningDataModule",
    "LightningModule",
    "Trainer",
    "__version__",
    "seed_everything",
]

__getattr__ = names_of(__name__, raylit)
