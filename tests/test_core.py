"""Lightning's paths lead somewhere, and to the same names."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from raylit import core


@pytest.mark.parametrize("path", [*core.PATHS, "core", "demos.boring_classes"])
def test_a_path_is_lightnings(path: str) -> None:
    ours, theirs = importlib.import_module(f"raylit.{path}"), importlib.import_module(f"lightning.pytorch.{path}")
    names = core.PATHS.get(path) or ours.__all__
    assert names
    assert [name for name in names if not hasattr(theirs, name) or not hasattr(ours, name)] == []


def test_they_are_imported_as_users_do() -> None:
    script = (
        "from raylit.core.module import LightningModule\n"
        "from raylit.trainer.states import TrainerFn\n"
        "import raylit.callbacks.lr_monitor as lr_monitor\n"
        "import raylit.callbacks.progress.tqdm_progress\n"
        "import raylit as pl\n"
        "assert pl.LightningModule is LightningModule is pl.core.LightningModule\n"
        "assert lr_monitor.LearningRateMonitor is pl.callbacks.LearningRateMonitor\n"
        "assert pl.callbacks.progress.TQDMProgressBar is pl.callbacks.TQDMProgressBar\n"
        "assert pl.core.datamodule.LightningDataModule is pl.LightningDataModule\n"
        "assert pl.trainer.Trainer is pl.Trainer and pl.utilities.parsing.AttributeDict is pl.utilities.AttributeDict\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
