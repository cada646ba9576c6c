from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.callbacks import ModelCheckpoint, OnExceptionCheckpoint, RecoveryCheckpoint
from raylit.core.job import Fn, Job
from raylit.errors import ConfigError
from raylit.launch.job_parts import by_class, checkpoint_folders, parts_of
from raylit.launch.processes.launcher import pickled
from raylit.loggers import CSVLogger
from raylit.testing import TinyModel
from tests.quiet import trainer


def job(folder: Path, *callbacks: pl.Callback, fn: Fn = "fit", **arguments: Any) -> Job:
    made = trainer(folder, *callbacks, **{"enable_checkpointing": None, **arguments})
    return Job(fn, made, TinyModel())


def test_the_folders_of_a_fit_are_those_of_all_that_save(tmp_path: Path) -> None:
    """Each once, the folder for recovery too."""
    savers = (
        ModelCheckpoint(tmp_path / "best"),
        ModelCheckpoint(tmp_path / "all", save_top_k=-1),
        ModelCheckpoint(tmp_path / "best", monitor="val_loss"),
        RecoveryCheckpoint(),
    )
    found = checkpoint_folders(job(tmp_path, *savers))
    assert sorted(found) == [str(tmp_path / name) for name in ("all", "best", "best/recovery")]


def test_a_fit_that_says_nothing_saves_below_its_root(tmp_path: Path) -> None:
    folders = checkpoint_folders(job(tmp_path))
    assert folders and all(Path(folder).is_relative_to(tmp_path) for folder in folders)
    assert not any(Path(folder).exists() for folder in folders), "asking makes none"


def test_what_saves_only_after_an_exception_has_no_folder_to_go_on_from(tmp_path: Path) -> None:
    one = job(tmp_path, OnExceptionCheckpoint(tmp_path / "left"))
    assert any(isinstance(saver, OnExceptionCheckpoint) for saver in one.trainer.savers)
    folders = checkpoint_folders(one)
    assert None not in folders and str(tmp_path / "left") not in folders


@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_only_a_fit_has_folders(tmp_path: Path, fn: Fn) -> None:
    assert checkpoint_folders(job(tmp_path, ModelCheckpoint(tmp_path), fn=fn)) == []


def test_a_fit_that_saves_nothing_has_none(tmp_path: Path) -> None:
    one = job(tmp_path, enable_checkpointing=False)
    assert not one.trainer.savers and checkpoint_folders(one) == []


class Holds(pl.Callback):
    def __init__(self) -> None:
        self.lock = threading.Lock()


class Numbers(CSVLogger):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.numbers = (number for number in range(3))


def test_parts_have_the_names_that_a_user_knows(tmp_path: Path) -> None:
    one = job(tmp_path, Holds(), enable_checkpointing=False, logger=CSVLogger(tmp_path))
    one.data = {"train": [1], "val": [2]}
    parts = parts_of(one)
    assert set(parts) == {
        "The LightningModule",
        "The LightningDataModule",
        "The train data",
        "The val data",
        "The callback Holds",
        "The logger CSVLogger",
    }
    assert parts["The LightningModule"] is one.module
    assert (parts["The train data"], parts["The val data"]) == ([1], [2])
    assert parts["The logger CSVLogger"] is one.trainer.loggers[0]


def test_all_parts_that_cannot_be_sent_are_named_and_no_others(tmp_path: Path) -> None:
    one = job(tmp_path, Holds(), logger=Numbers(tmp_path))
    one.data = {"train": (number for number in range(3)), "val": [1]}
    with pytest.raises(ConfigError) as raised:
        pickled(one)
    assert str(raised.value).startswith(
        "The train data, The callback Holds, The logger Numbers cannot be sent to the processes: "
    )
    assert "strategy='ddp_fork', which sends nothing" in str(raised.value)
    assert isinstance(raised.value.__cause__, TypeError)


def test_a_job_that_cannot_be_sent_for_no_part_of_its_own_is_told_too(tmp_path: Path) -> None:
    one = job(tmp_path)
    one.display = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"^The job cannot be sent to the processes: "):
        pickled(one)


class MayHold(pl.Callback):
    def __init__(self, lock: Any = None) -> None:
        self.lock = lock


def test_a_part_that_cannot_be_sent_is_named_beside_another_of_its_class(tmp_path: Path) -> None:
    one = job(tmp_path, MayHold(threading.Lock()), MayHold())
    with pytest.raises(ConfigError, match="The callback MayHold"):
        pickled(one)


def test_every_part_has_a_name_of_its_own() -> None:
    classes = [type("Mine", (), {}) for _ in range(2)]  # of one name, as of two modules
    parts = [classes[0](), classes[1](), classes[0]()]
    named = by_class("The callback", parts)
    assert list(named) == ["The callback Mine", "The callback Mine (2)", "The callback Mine (3)"]
    assert list(named.values()) == parts
