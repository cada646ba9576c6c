"""A fit whose process is killed at random moments is the fit that was never killed.

It is started again until it ends, and is the same bit for bit.
"""

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

from tests.deadlines import stretched

ROOT = Path(__file__).parents[2]
LONGEST_S = 1.0  # after the first batch; a whole fit takes about as long


def start(folder: Path, seed: int, ranks: int) -> list[subprocess.Popen[bytes]]:
    """Start the fit: one process, or the ranks of a group as torchrun does."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "TORCHELASTIC_RUN_ID": "test",
    }
    command = [sys.executable, "-m", "tests.chaos.train", str(folder), str(seed)]
    errors = (folder / "errors").open("ab")
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ
            | {"PYTHONFAULTHANDLER": "1"}
            | (group | {"RANK": rank, "LOCAL_RANK": rank} if ranks > 1 else {}),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        for rank in map(str, range(ranks))
    ]


def kill_until_it_ends(folder: Path, seed: int, number: signal.Signals, ranks: int) -> int:
    """Start the fit and end it, by a signal to one of its ranks, again and again.

    Returns how often. Every third start runs a little longer.
    """
    dice, killed = random.Random(seed), 0
    while True:
        before = size_of(folder / "steps")
        processes = start(folder, seed, ranks)
        try:
            while (
                all(one.poll() is None for one in processes) and size_of(folder / "steps") == before
            ):
                time.sleep(0.005)
            try:
                processes[0].wait(dice.uniform(0, LONGEST_S * (1 + killed % 3)))
            except subprocess.TimeoutExpired:
                dice.choice(processes).send_signal(number)
                killed += 1
            codes = [ended(one, folder / "errors") for one in processes]
        finally:
            for one in processes:
                one.kill()
                one.wait()
        if not any(codes):
            return killed
        assert {-number, 128 + number} & {*codes}, (folder / "errors").read_text()
        assert killed < 50, "it does not come forward"


def ended(process: subprocess.Popen[bytes], errors: Path) -> int:
    """Return the exit code of a rank, which ends by itself when another has died."""
    try:
        return process.wait(stretched(60))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # writes down where each thread is
        process.wait()
        raise AssertionError(f"A rank hangs:\n{errors.read_text()[-9000:]}") from None


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def rows(folder: Path) -> dict[tuple[str, str], set[str]]:
    """All values that were logged, by step and name.

    The same value if a step was trained on twice.
    """
    found: dict[tuple[str, str], set[str]] = {}
    with (folder / "version_0" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault((row["step"], name), set()).add(value)
    return found


def check(tmp_path: Path, seed: int, number: signal.Signals, ranks: int = 1) -> None:
    codes = [one.wait(stretched(120)) for one in start(tmp_path / "whole", seed, ranks)]
    assert not any(codes), (tmp_path / "whole" / "errors").read_text()
    killed = kill_until_it_ends(tmp_path / "killed", seed, number, ranks)
    assert killed > 0
    whole, pieces = (
        torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "killed")
    )
    assert all(
        torch.equal(value, pieces["weights"][name]) for name, value in whole["weights"].items()
    ), killed
    assert torch.equal(whole["loss"], pieces["loss"])
    assert rows(tmp_path / "killed") == rows(tmp_path / "whole")


SIGNALS = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])


def test_one_process(tmp_path: Path) -> None:
    check(tmp_path, 1, signal.SIGKILL)


@pytest.mark.long
@SIGNALS
@pytest.mark.parametrize("seed", range(20))
def test_one_process_often(tmp_path: Path, seed: int, number: signal.Signals) -> None:
    check(tmp_path, seed, number)


def test_one_of_two_ranks(tmp_path: Path) -> None:
    check(tmp_path, 200, signal.SIGKILL, ranks=2)


@pytest.mark.long
@SIGNALS
@pytest.mark.parametrize("seed", range(201, 220))
def test_one_of_two_ranks_often(tmp_path: Path, seed: int, number: signal.Signals) -> None:
    check(tmp_path, seed, number, ranks=2)
