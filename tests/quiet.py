"""Trainers that show nothing, for tests of what a fit does.

`Trainer(**QUIET, ...)` where a test has settings of its own, `trainer(folder, ...)` for the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import raylit as pl

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
UNLOGGED: dict[str, Any] = {**QUIET, "logger": False}
BARE: dict[str, Any] = {**UNLOGGED, "enable_checkpointing": False}  # writes no file


def trainer(folder: Path | str, *callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
    """Return a Trainer of one epoch that writes nothing; `arguments` come before its own."""
    own = {"max_epochs": 1, "default_root_dir": folder, "callbacks": list(callbacks)}
    return pl.Trainer(**{**BARE, **own, **arguments})
