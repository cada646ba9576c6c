"""That the benchmark runs, not what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

LOOPS = ["by hand", "Fabric", "Accelerate", "Lightning", "Lightning, one log", "Lightning, everything",
         "raylit", "raylit, one log", "raylit, everything"]  # fmt: skip


def test_the_table_has_a_ratio_for_every_loop() -> None:
    command = [sys.executable, "-m", "tests.benchmarks.step", "--steps", "150", "--rounds", "1"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"  +", line) for line in done.stdout.splitlines()[1:]]
    assert [row[0] for row in rows] == LOOPS
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows), done.stdout
