"""The folder that a run claims, and its hyperparameters as YAML."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from enum import Enum
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from raylit.loggers.files import NO_HPARAMS, claim_version, hparams_as_yaml
from tests.deadlines import stretched

CLAIMS = (
    "import sys\nfrom raylit.loggers.files import claim_version\nprint('ready', flush=True)\n"
    "sys.stdin.readline()\nprint(*[claim_version(sys.argv[1]) for _ in range(100)])\n"
)


def test_processes_that_start_together_get_numbers_of_their_own(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIMS, str(tmp_path / "new" / "logs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate(timeout=stretched(20))[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    numbers = [int(number) for text in told for number in text.split()]
    assert sorted(numbers) == list(range(300))
    assert {path.name for path in (tmp_path / "new" / "logs").iterdir()} == {
        f"version_{number}" for number in range(300)
    }


def test_the_next_number_is_behind_the_highest_and_fills_no_gap(tmp_path: Path) -> None:
    """A run that was deleted may still be named somewhere, so its number is not given again."""
    (tmp_path / "version_3").mkdir()
    (tmp_path / "version_10").mkdir()  # and not behind 3, as texts are ordered
    assert claim_version(str(tmp_path)) == 11
    (tmp_path / "version_11").rmdir()
    assert claim_version(str(tmp_path)) == 11


@pytest.mark.parametrize("name", ["version_", "version_x", "version_-1", "versions_7", "version"])
def test_other_names_are_no_versions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert claim_version(str(tmp_path)) == 0


def test_a_file_that_has_the_name_of_a_version_is_left(tmp_path: Path) -> None:
    (tmp_path / "version_4").write_text("notes")
    assert claim_version(f"{tmp_path}/") == 5
    assert (tmp_path / "version_4").read_text() == "notes"


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OSError):  # and no search for a number without end
        claim_version(str(tmp_path / "logs"))


def test_in_a_bucket_a_small_file_claims_a_version(bucket: str) -> None:
    """There are no folders in it."""
    fs = fsspec.filesystem("s3")
    root = f"{bucket}/logs"
    numbers: list[int] = []

    def claim() -> None:
        numbers.extend(claim_version(root) for _ in range(3))

    threads = [threading.Thread(target=claim) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(6))
    fs.invalidate_cache()
    for number in numbers:
        assert fs.cat_file(f"{root}/version_{number}/hparams.yaml") == NO_HPARAMS
    assert yaml.safe_load(NO_HPARAMS) == {}


class Color(Enum):
    RED = "r"


class Holds:
    """A user's own object that cannot be written."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle")


def test_hyperparameters_come_back_as_they_were() -> None:
    hparams = {
        "ünï: code": "yes",
        "text": "two\nlines: {#",
        "number": "1e3",
        "none": None,
        "nan": float("nan"),
        "inf": float("-inf"),
        "big": 2**70,
        "nested": {"layers": [1, 2.5], "empty": {}, 3: ()},
        "": "nothing",
    }
    read = yaml.unsafe_load(hparams_as_yaml(hparams))
    assert str(read.pop("nan")) == "nan"
    assert read == {key: value for key, value in hparams.items() if key != "nan"}
    assert yaml.safe_load(hparams_as_yaml({})) == {}


def test_an_enum_is_told_by_its_name() -> None:
    assert yaml.safe_load(hparams_as_yaml({"color": Color.RED})) == {"color": "RED"}


def test_what_yaml_cannot_hold_is_named_and_the_rest_is_kept() -> None:
    lock = multiprocessing.Lock()  # which raises a RuntimeError
    hparams = {"first": 1, "lock": lock, "deep": {"a": [Holds()]}, "last": 2}
    with pytest.warns(UserWarning) as warned:
        text = hparams_as_yaml(hparams)
    assert yaml.safe_load(text) == {"first": 1, "last": 2}
    assert [str(one.message).split(" is not in")[0] for one in warned] == [
        "The hyperparameter 'lock' (Lock)",
        "The hyperparameter 'deep' (dict)",
    ]
    assert set(hparams) == {"first", "lock", "deep", "last"}, "what was given stays whole"
