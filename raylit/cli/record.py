"""Keeps the config with the run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from raylit.callbacks import Callback
from raylit.messages import warn

if TYPE_CHECKING:
    from raylit.module import LightningModule
    from raylit.trainer import Trainer


class SaveConfigCallback(Callback):
    """Stores the config as `config.yaml`: an artifact of the run in MLflow, a file in the folder of other loggers.

    Args:
        text: the config.
        config_filename: how the file is called.
    """

    def __init__(self, text: str, config_filename: str = "config.yaml") -> None:
        self.text = text
        self.config_filename = config_filename

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the config, on rank 0."""
        if not trainer.is_global_zero or stage == "predict":  # predict opens no loggers
            return
        for logger in trainer.loggers:
            log_text = getattr(logger, "log_text", None)
            try:
                if log_text is not None:
                    log_text(self.text, self.config_filename)
                elif logger.log_dir:
                    os.makedirs(logger.log_dir, exist_ok=True)
                    with open(os.path.join(logger.log_dir, self.config_filename), "w", encoding="utf-8") as file:
                        file.write(self.text)
            except Exception as error:  # the run is worth more than the record of it
                warn(f"The config could not be stored with {type(logger).__name__}: {error}")
