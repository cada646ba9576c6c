"""Keeps the config with the run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec

from raylit.callbacks import Callback
from raylit.checkpoint import folder
from raylit.core.hooks import is_overridden
from raylit.core.logger import as_loggers
from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger, TensorBoardLogger
from raylit.loggers.artifacts import KeepsFiles
from raylit.runtime.masked_config import mask_config
from raylit.runtime.messages import info, warn
from raylit.runtime.storage import write_text

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from raylit.cli.parser import LightningArgumentParser
    from raylit.core.module import LightningModule
    from raylit.trainer.trainer import Trainer


OWN_CHECKPOINTS = ("ckpt_path: last", "ckpt_path: best")


class KeepConfig(Callback):
    """Stores the config of the `raylit` command as `config.yaml`.

    An artifact of the run in MLflow, a file in the folder of other loggers.

    Args:
        text: the config.
        config_filename: how the file is called.
    """

    keeps_config = True

    def __init__(self, text: str, config_filename: str = "config.yaml") -> None:
        self.text = text
        self.config_filename = config_filename

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the config, on rank 0."""
        if not trainer.is_global_zero or stage == "predict":  # predict opens no loggers
            return
        text = mask_config(from_the_start(self.text))
        for logger in as_loggers(trainer.loggers):
            try:
                if _keeps_texts_alone(logger):
                    name = _name_in_run(self.config_filename, stage)
                    getattr(logger, "log_text")(text, name)  # noqa: B009
                elif logger.log_dir:
                    write_text(os.path.join(logger.log_dir, self.config_filename), text)
            except Exception as error:  # the run is worth more than the record of it
                warn(f"The config could not be stored with {type(logger).__name__}: {error}")
            if stage == "fit" and isinstance(logger, MLFlowLogger):
                _say_page(logger)


def _name_in_run(config_filename: str, stage: str) -> str:
    """Return the name of a config in a run, which evaluations of its checkpoints log into too."""
    path = Path(config_filename)
    return config_filename if stage == "fit" else f"{path.stem}-{stage}{path.suffix}"


def from_the_start(text: str) -> str:
    """Return a config without the checkpoint of a fit that goes on in its own run."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if line.strip() not in OWN_CHECKPOINTS)


def _say_page(logger: MLFlowLogger) -> None:
    """Say where to look at a run while it runs, if its store is a server."""
    where = logger.where()
    if where.startswith(("http://", "https://")):
        info(f"MLflow: {where}")


class SaveConfigCallback(Callback):
    """Stores the config of a LightningCLI in `trainer.log_dir` when the work begins.

    In MLflow it becomes an artifact of the run.

    Subclass it to keep the config elsewhere too: override `save_config`, which is called on rank 0
    only.

    Args:
        parser: what read the config.
        config: the config.
        config_filename: how the file is called.
        overwrite: whether a file that is there already, from another run, is written over.
        multifile: whether parts of the config that came from files of their own are written to such
            files again.
        save_to_log_dir: False leaves all to `save_config`.

    Raises:
        ConfigError: `save_to_log_dir` is False, but `save_config` is not overridden.

    Example:
        >>> class LogConfig(SaveConfigCallback):
        ...     def save_config(self, trainer, pl_module, stage):
        ...         trainer.logger.log_hyperparams(
        ...             {"config": self.parser.dump(self.config, skip_none=False)}
        ...         )
        >>> LightningCLI(LitModel, save_config_callback=LogConfig)
    """

    keeps_config = True

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        config_filename: str = "config.yaml",
        overwrite: bool = False,
        multifile: bool = False,
        save_to_log_dir: bool = True,
    ) -> None:
        self.parser = parser
        self.config = config
        self.config_filename = config_filename
        self.overwrite = overwrite
        self.multifile = multifile
        self.save_to_log_dir = save_to_log_dir
        self.already_saved = False
        self._text: str | None = None
        if not save_to_log_dir and not is_overridden("save_config", self, SaveConfigCallback):
            raise ConfigError(
                f"{type(self).__name__}(save_to_log_dir=False) would save nothing. Override"
                " save_config in a subclass, or leave it out."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Store the config, on rank 0; all ranks fail if it cannot be.

        Raises:
            RuntimeError: there is a config of another run.
        """
        if self.already_saved:
            return
        if self.save_to_log_dir:
            self._save(trainer, stage)
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, stage)
        self.already_saved = True

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Override to keep `self.config` somewhere else.

        It runs on rank 0 only: it must not wait for other ranks.
        """

    def _save(self, trainer: Trainer, stage: str) -> None:
        text = (
            self._text
            if self._text is not None
            else mask_config(self.parser.dump(self.config, skip_unset=False))
        )
        if trainer.is_global_zero and stage != "predict":  # predict opens no loggers
            for logger in trainer.loggers:
                if _keeps_texts_alone(logger):
                    name = _name_in_run(self.config_filename, stage)
                    getattr(logger, "log_text")(from_the_start(text), name)  # noqa: B009
        if _keeps_texts_alone(trainer.logger):
            return  # a folder would be in the way of a fit that goes on in the same run
        log_dir = trainer.log_dir
        assert log_dir is not None
        files = self._files(log_dir, text) if trainer.is_global_zero else {}
        there = () if self.overwrite else files.items()
        taken = trainer.world.broadcast_object(
            next((path for path, kept in there if self._is_of_another_run(path, kept)), None)
        )
        if taken is not None:
            raise RuntimeError(
                f"{type(self).__name__} expected {taken} to NOT exist: it is the config of a"
                " previous run. Delete it, give this run another folder, write over it with"
                ' LightningCLI(save_config_kwargs={"overwrite": True}), or save none with'
                " LightningCLI(save_config_callback=None)."
            )
        for path, kept in files.items():
            write_text(path, kept)

    def _files(self, log_dir: str, text: str) -> dict[str, str]:
        """Return what is written, by the paths of the files."""
        if not self.multifile:
            return {os.path.join(log_dir, self.config_filename): text}
        with tempfile.TemporaryDirectory() as scratch:  # the parser writes secrets there alone
            path = os.path.join(scratch, self.config_filename)
            self.parser.save(
                self.config, path, skip_unset=False, overwrite=self.overwrite, multifile=True
            )
            return {
                os.path.join(log_dir, file.name): mask_config(file.read_text())
                for file in Path(scratch).iterdir()
            }

    def _is_of_another_run(self, path: str, text: str) -> bool:
        if not folder.exists(path):
            return False
        if self._text is None:
            return True
        # In a worker: it may have been restarted, and have written this before
        with fsspec.open(path, "r", encoding="utf-8") as file:
            return bool(file.read() != text)

    def __getstate__(self) -> dict[str, object]:
        """Return the state that goes to the workers.

        It has the config as a text, since workers may not find a class of the user's script by its
        name.
        """
        text = (
            self._text
            if self._text is not None
            else mask_config(self.parser.dump(self.config, skip_unset=False))
        )
        return {**self.__dict__, "_text": text}


def _keeps_texts_alone(logger: object) -> bool:
    """Return whether a logger takes texts, and has no folder in which a file would do."""
    return hasattr(logger, "log_text") and not isinstance(logger, (KeepsFiles, TensorBoardLogger))
