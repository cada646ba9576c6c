"""That the benchmarks run, not what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

LOOPS = [
    "by hand",
    "Fabric",
    "Accelerate",
    "by hand, everything",
    "Lightning",
    "Lightning, one log",
    "Lightning, everything",
    "raylit",
    "raylit, one log",
    "raylit, everything",
    "by hand, DataLoader",
    "Lightning, DataLoader",
    "raylit, DataLoader",
]


def run(name: str, *arguments: str) -> str:
    """What a benchmark prints."""
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("model", ["mlp", pytest.param("transformer", marks=pytest.mark.long)])
def test_the_table_has_a_ratio_for_every_loop(model: str) -> None:
    done = run(
        "step", "--steps", "150" if model == "mlp" else "15", "--rounds", "1", "--model", model
    )
    rows = [re.split(r"  +", line) for line in done.splitlines()[1:]]
    assert [row[0] for row in rows] == LOOPS
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows), done


@pytest.mark.long
def test_the_other_costs_are_measured() -> None:
    done = run("costs", "--rounds", "1")
    rows = [re.split(r"  +", line) for line in done.splitlines()]
    assert len(rows) == 7 and all(float(value.split()[0]) > 0 for _, value in rows), done


@pytest.mark.long
def test_what_saving_costs_is_measured() -> None:
    done = run("checkpoint", "--megabytes", "4", "--rounds", "1")
    rows = [re.split(r"  +", line) for line in done.splitlines()[1:7]]
    names = [
        "torch.save",
        "torch.save and fsync",
        "raylit, RecoveryCheckpoint",
        "raylit, save_checkpoint",
        "Lightning, save_checkpoint",
        "Lightning, AsyncCheckpointIO",
    ]
    assert [row[0] for row in rows] == names
    assert all(
        float(row[1].split()[0]) > 0 and float(row[3].split()[0]) >= float(row[1].split()[0])
        for row in rows
    ), done


@pytest.mark.ray
@pytest.mark.long
def test_what_validation_costs_is_measured() -> None:
    rows = [
        re.split(r"  +", line)
        for line in run("validation", "--steps", "20", "--rounds", "1").splitlines()[1:]
    ]
    assert [row[0] for row in rows] == ["no validation", "waited for", "not waited for"]
    assert all(float(value) > 0 for row in rows for value in row[1:])


@pytest.mark.ray
@pytest.mark.long
def test_the_cost_of_ray_is_measured() -> None:
    rows = [
        re.split(r"  +", line)
        for line in run("ray", "--only", "death", "--rounds", "1").splitlines()
        if line
    ]
    assert [row[0] for row in rows] == ["death, MLP 1 M", "raylit"]
    assert float(rows[1][1]) > 0


@pytest.mark.long
def test_how_fast_data_is_read_is_measured() -> None:
    done = run("data", "--rows", "6000", "--rounds", "1", "--stream-gb", "0.002", "--no-ray")
    tables = done.split("\n\n")
    for table in tables[:2]:
        rows = [re.split(r"  +", line.strip()) for line in table.splitlines()[2:]]
        assert len(rows) >= 13 and all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows)
    assert re.search(r"resume in memory at batch \d+: \d+ ms", done)
    assert re.search(r"streamed, shuffled, 0.0 GB +\d+", done), done
