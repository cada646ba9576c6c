"""Type checkers find the lines of user code that are wrong, and no others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

CODE = (Path(__file__).parent / "user_code.txt").read_text()
WRONG = {number for number, line in enumerate(CODE.splitlines(), 1) if line.endswith("# wrong")}
CHECKERS = {
    "mypy": (["mypy"], r"user_code\.py:(\d+): error"),
    "pyright": (["basedpyright", "--level", "error"], r"user_code\.py:(\d+):\d+ - error"),
}


@pytest.mark.parametrize("checker", CHECKERS)
def test_wrong_lines_are_found(checker: str, tmp_path: Path) -> None:
    command, error = CHECKERS[checker]
    path = tmp_path / "user_code.py"
    path.write_text(CODE)
    done = subprocess.run(
        [sys.executable, "-m", *command, str(path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=280,
    )
    found = {int(number) for number in re.findall(error, done.stdout)}
    assert found == WRONG, done.stdout + done.stderr
