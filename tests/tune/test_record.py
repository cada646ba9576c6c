"""The record of a sweep: who may write it, and what is left of it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raylit.tune.folders import is_running, mark_left, unfinished
from raylit.tune.record import LOCK, SweepRecord
from raylit.tune.space import SweepError
from raylit.tune.spec import SweepSpec

SPEC = SweepSpec({"model.lr": {"choice": [0.1, 0.2]}}, metric="val_loss", mode="min")
DIES = """
import os, sys
from tests.tune.test_record import SPEC, SweepRecord
record = SweepRecord(sys.argv[1], SPEC)
with record.held():
    record.open({"sweep": "record", "host": os.uname().nodename})
    os._exit(1)
"""


def test_one_process_has_it_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "record-1"
    with SweepRecord(str(folder), SPEC).held():
        assert is_running(str(folder))
        with (
            pytest.raises(SweepError, match="record-1 is being run by another process"),
            SweepRecord(str(folder), SPEC).held(),
        ):
            raise AssertionError
        assert is_running(str(folder))  # the refused one took nothing away


def test_a_sweep_that_does_not_begin_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "record-1"
    with pytest.raises(KeyError), SweepRecord(str(folder), SPEC).held():
        raise KeyError
    assert not folder.exists()


def test_one_whose_driver_died_can_be_gone_on_with(tmp_path: Path) -> None:
    folder = tmp_path / "record-1"
    command = [sys.executable, "-c", DIES, str(folder)]
    assert subprocess.run(command, check=False, cwd=Path(__file__).parents[2]).returncode == 1
    assert unfinished(str(tmp_path)) == ["record-1"]
    with SweepRecord(str(folder), SPEC).held():
        assert mark_left(str(folder)) is None  # somebody goes on with it
    again = SweepRecord(str(folder), SPEC)
    with again.held():
        again.read()
        again.open({"sweep": "not this"})
        assert again.head["host"] == os.uname().nodename
        again.close("success")
    assert not unfinished(str(tmp_path))


def test_a_lock_that_was_removed_while_it_was_waited_for_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has it would not keep others out: they make a new file."""
    folder = tmp_path / "record-1"
    lock = fcntl.flock

    def after_another_has_ended(*arguments: Any) -> None:
        (folder / LOCK).unlink()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", after_another_has_ended)
    with (
        pytest.raises(SweepError, match="was just ended by another process"),
        SweepRecord(str(folder), SPEC).held(),
    ):
        raise AssertionError
