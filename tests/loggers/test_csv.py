from __future__ import annotations

import csv
import os
import pickle
import resource
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml

from raylit.callbacks import ModelCheckpoint
from raylit.loggers import CSVLogger, Logger
from raylit.testing.loggers import LoggerConformance, log_in_another_process
from tests.deadlines import stretched


def rows(logger: CSVLogger) -> list[dict[str, str]]:
    with open(os.path.join(logger.log_dir, "metrics.csv"), newline="") as file:
        return list(csv.DictReader(file))


class TestConformance(LoggerConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Callable[[], Logger]:
        return lambda: CSVLogger(tmp_path)

    def history(self, logger: Logger) -> list[tuple[str, int, float]]:
        assert isinstance(logger, CSVLogger)
        return [
            (key, int(row["step"]), float(row[key]))
            for row in rows(logger)
            for key in row
            if row[key] and key != "step"
        ]

    def hyperparams(self, logger: Logger) -> Mapping[str, Any] | None:
        assert isinstance(logger, CSVLogger)
        read: Mapping[str, Any] = yaml.unsafe_load(
            (Path(logger.log_dir) / "hparams.yaml").read_text()
        )
        return read


class TestConformanceAtAURL(LoggerConformance):
    @pytest.fixture
    def make(self, bucket: str) -> Callable[[], Logger]:
        return lambda: CSVLogger(bucket)

    def history(self, logger: Logger) -> list[tuple[str, int, float]]:
        with fsspec.open(f"{logger.log_dir}/metrics.csv", "r", newline="") as file:
            return [
                (key, int(row["step"]), float(row[key]))
                for row in csv.DictReader(file)
                for key in row
                if row[key] and key != "step"
            ]

    def hyperparams(self, logger: Logger) -> Mapping[str, Any] | None:
        with fsspec.open(f"{logger.log_dir}/hparams.yaml") as file:
            read: Mapping[str, Any] = yaml.unsafe_load(file)
        return read

    def test_rows_are_there_while_the_run_goes_on(self, opened: Logger) -> None:
        opened.log_metrics({"loss": 0.5}, 0)
        opened.after_save_checkpoint(ModelCheckpoint())
        deadline = time.monotonic() + stretched(30)
        while not fsspec.filesystem("s3").exists(f"{opened.log_dir}/metrics.csv"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert self.history(opened) == [("loss", 0, 0.5)]


class Color(Enum):
    RED = 1


def use(logger: Any) -> None:
    """What a Trainer and its user do with a logger."""
    logger.log_hyperparams(
        {
            "lr": 0.1,
            "layers": [1, 2],
            "model": {"width": 32, "name": "net"},
            "none": None,
            "color": Color.RED,
        }
    )
    logger.log_hyperparams(Namespace(seed=7, lr=0.1))
    logger.save()
    for step in range(4):
        logger.log_metrics({"train_loss": 1 / (step + 3), "epoch": step // 2}, step=step)
        logger.save()
        if step % 2:
            logger.log_metrics(
                {"val_loss": torch.tensor(0.5 * step), "b": float("nan"), "epoch": step // 2},
                step=step,
            )
            logger.save()
    logger.log_metrics({"test_acc": 1, "epoch": 2}, step=4)
    logger.finalize("success")


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"name": None, "prefix": "p"},
        {"name": "digits", "version": "mine", "flush_logs_every_n_steps": 1},
        {"version": 3},
    ],
    ids=str,
)
def test_files_are_those_of_lightning(tmp_path: Path, arguments: dict[str, Any]) -> None:
    from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for run in range(2 if "version" not in arguments else 1):  # the second takes the next version
        use(CSVLogger(ours, **arguments))
        use(LightningCSVLogger(theirs, **arguments))
        names = sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*.*"))
        assert sorted(str(path.relative_to(ours)) for path in ours.rglob("*.*")) == names
        assert len(names) == 2 * (run + 1)
        for name in names:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def test_properties_are_those_of_lightning(tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger as LightningCSVLogger

    for arguments in ({}, {"name": None}, {"name": "a", "version": "b"}, {"version": 5}):
        ours, theirs = CSVLogger(tmp_path, **arguments), LightningCSVLogger(tmp_path, **arguments)
        for name in ("version", "name", "save_dir", "root_dir", "log_dir"):
            if name == "version" and "version" not in arguments:
                assert theirs.version == ours.version  # theirs first: asking ours claims the number
            else:
                assert getattr(ours, name) == getattr(theirs, name)


def test_rows_without_a_new_column_are_appended(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    path = Path(logger.log_dir) / "metrics.csv"
    inode = path.stat().st_ino
    logger.log_metrics({"a": 2.0}, 1)
    logger.save()
    assert path.stat().st_ino == inode
    logger.log_metrics({"b": 2.0}, 2)
    logger.save()
    assert path.read_bytes() == b"a,b,step\r\n1.0,,0\r\n2.0,,1\r\n,2.0,2\r\n"


def test_flush_every_n_steps(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=3)
    path = Path(logger.log_dir) / "metrics.csv"
    for step, written in enumerate([False, False, True]):
        logger.log_metrics({"a": 1.0}, step)
        assert path.exists() is written


def test_a_torn_last_row_is_dropped(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, version=0)
    logger.open(default_root_dir=str(tmp_path), tags={})
    path = Path(logger.log_dir) / "metrics.csv"
    path.write_bytes(b"loss,step\r\n0.5,0\r\n0.2")
    log_in_another_process(logger, [({"loss": 0.5}, 0), ({"loss": 0.25}, 1)])
    assert path.read_bytes() == b"loss,step\r\n0.5,0\r\n0.25,1\r\n"


def test_a_fit_from_scratch_begins_anew_in_an_existing_version(tmp_path: Path) -> None:
    for value in (0.5, 0.25):
        logger = CSVLogger(tmp_path, version="mine")
        logger.start_over()
        if os.path.exists(logger.log_dir):
            with pytest.warns(UserWarning, match="exists and is not empty"):
                logger.open(default_root_dir=str(tmp_path), tags={})
        else:
            logger.open(default_root_dir=str(tmp_path), tags={})
        log_in_another_process(logger, [({"loss": value}, 0)])
    assert [row["loss"] for row in rows(logger)] == ["0.25"]
    logger.start_over()  # a second fit with the same logger goes on
    logger.open(default_root_dir=str(tmp_path), tags={})
    log_in_another_process(logger, [({"loss": 0.125}, 1)])
    assert [row["loss"] for row in rows(logger)] == ["0.25", "0.125"]


def test_an_existing_version_is_continued_with_a_warning(tmp_path: Path) -> None:
    """By what is no fit from scratch: one that goes on, an evaluation."""
    # Not a restart: the second run's values are its own, though the steps are the same
    for _ in range(2):
        logger = CSVLogger(tmp_path, version="mine")
        if os.path.exists(logger.log_dir):
            with pytest.warns(UserWarning, match="already holds metrics"):
                logger.open(default_root_dir=str(tmp_path), tags={})
        else:
            logger.open(default_root_dir=str(tmp_path), tags={})
        log_in_another_process(logger, [({"loss": 0.5}, 0)])
    assert [row["step"] for row in rows(logger)] == ["0", "0"]


def test_values_whose_steps_begin_anew_go_on_after_a_restart(tmp_path: Path) -> None:
    """As the rates of each validation, which are counted from 1 in each epoch."""
    logger = CSVLogger(tmp_path)
    logger.open(default_root_dir=str(tmp_path), tags={})

    def epoch(number: int) -> list[Any]:
        return [({"loss": 0.5}, 3 * number), *(({"rate": float(number)}, x) for x in (1, 2))]

    log_in_another_process(logger, [*epoch(0), *epoch(1)], "failed")
    log_in_another_process(logger, [({"loss": 0.5, "new": 1.0}, 3), *epoch(2)])
    found = [(row["step"], row["loss"], row["rate"]) for row in rows(logger)]
    assert [step for step, loss, _ in found if loss] == ["0", "3", "6"]
    assert [rate for _, _, rate in found if rate] == ["0.0", "0.0", "1.0", "1.0", "2.0", "2.0"]
    assert [row["step"] for row in rows(logger) if row["new"]] == ["3"]


def test_the_version_is_claimed_once(tmp_path: Path) -> None:
    assert [CSVLogger(tmp_path).version for _ in range(3)] == [0, 1, 2]
    (tmp_path / "lightning_logs" / "version_7_old").mkdir()
    assert CSVLogger(tmp_path).version == 8
    opened = CSVLogger(tmp_path)
    opened.open(default_root_dir=str(tmp_path), tags={})
    assert pickle.loads(pickle.dumps(opened)).version == opened.version == 9


def test_a_relative_folder_is_fixed_by_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = CSVLogger("logs")
    logger.open(default_root_dir=str(tmp_path), tags={})
    monkeypatch.chdir("/")
    assert pickle.loads(pickle.dumps(logger)).log_dir == str(
        tmp_path / "logs" / "lightning_logs" / "version_0"
    )


def test_what_yaml_cannot_hold_is_left_out(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    with pytest.warns(UserWarning, match="'bad'"):
        logger.log_hyperparams({"lr": 0.1, "bad": (number for number in [1])})
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {"lr": 0.1}


def test_a_full_disk_does_not_raise(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    for step in range(2):
        logger.log_metrics({"a": 1.0}, step)
        logger.save()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The disk is full in the middle of the next rows
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limits[1]))
    try:
        with pytest.warns(UserWarning, match="Training goes on"):
            for step in range(2, 6):
                logger.log_metrics({"a": 1.0}, step)
                logger.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    logger.finalize("success")
    assert [row["step"] for row in rows(logger)] == ["0", "1", "2", "3", "4", "5"]


def test_importing_loggers_is_cheap() -> None:
    script = "import sys, raylit.loggers; print(*{'mlflow', 'ray', 'pyarrow'} & set(sys.modules))"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=stretched(60),
        env=env,
        check=True,
    )
    assert done.stdout.split() == []
