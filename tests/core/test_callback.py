"""The contract of callbacks: their order, and the folder that checkpoints go to."""

from __future__ import annotations

from pathlib import Path

from raylit.callbacks import BatchSizeFinder, Callback, ModelCheckpoint, Timer
from raylit.core.callback import default_folder, in_order
from raylit.loggers import CSVLogger
from raylit.trainer import Trainer


def test_the_folder_of_a_run(tmp_path: Path) -> None:
    def folder_with(*loggers: CSVLogger) -> str:
        return default_folder(Trainer(default_root_dir=tmp_path, logger=loggers, max_epochs=1))

    assert folder_with() == str(tmp_path / "checkpoints")
    for version, name in ((3, "version_3"), ("best", "best")):
        logger = CSVLogger(tmp_path, "mine", version=version)
        assert folder_with(logger, CSVLogger("other")) == str(
            tmp_path / "mine" / name / "checkpoints"
        )


def test_finders_are_called_first_and_checkpoints_last() -> None:
    checkpoint, timer, usual, finder = ModelCheckpoint(), Timer(), Callback(), BatchSizeFinder()
    assert in_order([checkpoint, timer, usual, finder]) == [finder, timer, usual, checkpoint]
