"""A fit whose process is killed at random moments, and started again until it ends, is the fit that was never killed, bit for bit."""

from __future__ import annotations

import csv
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
LONGEST_S = 1.0  # after the first batch; a whole fit takes about as long


def start(folder: Path, seed: int, **env: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.chaos.train", str(folder), str(seed)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, stdout=subprocess.DEVNULL, stderr=(folder / "errors").open("ab"))


def start_two(folder: Path, seed: int) -> list[subprocess.Popen[bytes]]:
    """Start the two ranks of a group, as torchrun does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test"}
    return [start(folder, seed, RANK=rank, LOCAL_RANK=rank, **common) for rank in "01"]


def kill_until_it_ends(folder: Path, seed: int, number: signal.Signals) -> int:
    """Start the fit and end it by a signal, again and again; returns how often. Every third start is let run a little longer."""
    dice, killed = random.Random(seed), 0
    while True:
        before = size_of(folder / "steps")
        process = start(folder, seed)
        try:
            while process.poll() is None and size_of(folder / "steps") == before:
                time.sleep(0.005)
            try:
                process.wait(dice.uniform(0, LONGEST_S * (1 + killed % 3)))
            except subprocess.TimeoutExpired:
                process.send_signal(number)
                killed += 1
            code = process.wait(60)
        finally:
            process.kill()
            process.wait()
        if code == 0:
            return killed
        assert code in (-number, 128 + number), (folder / "errors").read_text()
        assert killed < 50, "it does not come forward"


def rows(folder: Path) -> dict[tuple[str, str], set[str]]:
    """All values that were logged, by step and name: the same value if a step was trained on twice."""
    found: dict[tuple[str, str], set[str]] = {}
    with (folder / "version_0" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault((row["step"], name), set()).add(value)
    return found


def kill_one_until_they_end(folder: Path, seed: int, number: signal.Signals) -> int:
    """As above, with two ranks of which one gets the signal: the other ends too."""
    dice, killed = random.Random(seed), 0
    while True:
        before = size_of(folder / "steps")
        both = start_two(folder, seed)
        try:
            while all(one.poll() is None for one in both) and size_of(folder / "steps") == before:
                time.sleep(0.005)
            time.sleep(dice.uniform(0, LONGEST_S * (1 + killed % 3)))
            if any(one.poll() is None for one in both):
                dice.choice(both).send_signal(number)
                killed += 1
            codes = [one.wait(60) for one in both]
        finally:
            for one in both:
                one.kill()
                one.wait()
        if codes == [0, 0]:
            return killed
        assert 0 not in codes or killed, (folder / "errors").read_text()
        assert killed < 50, "they do not come forward"


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def check(tmp_path: Path, seed: int, number: signal.Signals) -> None:
    assert start(tmp_path / "whole", seed).wait(120) == 0, (tmp_path / "whole" / "errors").read_text()
    killed = kill_until_it_ends(tmp_path / "killed", seed, number)
    compare(tmp_path, killed)


def check_two(tmp_path: Path, seed: int, number: signal.Signals) -> None:
    whole = start_two(tmp_path / "whole", seed)
    assert [one.wait(120) for one in whole] == [0, 0], (tmp_path / "whole" / "errors").read_text()
    killed = kill_one_until_they_end(tmp_path / "killed", seed, number)
    compare(tmp_path, killed)


def compare(tmp_path: Path, killed: int) -> None:
    assert killed > 0
    whole, pieces = (torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(value, pieces["weights"][name]) for name, value in whole["weights"].items()), killed
    assert torch.equal(whole["loss"], pieces["loss"])
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


@pytest.mark.parametrize("seed", range(3))
def test_killed(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 20))
def test_killed_often(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed, signal.SIGKILL)


def test_terminated(tmp_path: Path) -> None:
    check(tmp_path, 100, signal.SIGTERM)


def test_one_of_two_ranks_is_killed(tmp_path: Path) -> None:
    check_two(tmp_path, 200, signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("seed", range(201, 206))
def test_one_of_two_ranks_is_killed_often(tmp_path: Path, seed: int, number: signal.Signals) -> None:
    check_two(tmp_path, seed, number)
