"""The oldest versions that `pyproject.toml` allows, in an environment of their own.

Long, and of several gigabytes: the oldest torch comes with CUDA.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTED = [  # what reaches no service, and needs no package but those below
    "tests/engine",
    "tests/metrics",
    "tests/callbacks",
    "tests/checkpoint",
    "tests/core",
    "tests/data",
    "tests/loggers",
    "tests/trainer",
    "tests/cli/test_run.py",
    "tests/tune/test_sweep.py",
]
# s3fs, for one, asks for a younger fsspec than raylit does, so not the extra `test`.
TOOLS = (
    "pytest>=8 pytest-timeout pytest-xdist hypothesis lightning==2.6.6 optuna==4.0 pyte psutil"
    " attrs torchdata tensorboard scikit-learn nbformat nbclient ipykernel matplotlib"
    " psycopg2-binary captum"
)


def floors() -> list[str]:
    """Return each dependency at the version that its `>=` names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = []
    for wish in project["dependencies"]:
        name, floor = re.fullmatch(r"([\w.-]+(?:\[[\w,]+\])?)>=([\w.]+).*", wish).groups()  # type: ignore[union-attr]
        found.append(f"{name}=={floor}")
    return found


def test_each_dependency_has_a_floor() -> None:
    assert {wish.partition("==")[0] for wish in floors()} > {"torch", "mlflow", "pyarrow"}


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_tests_pass_with_the_oldest_versions(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv/bin/python")
    install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir"]
    subprocess.run([*install, *floors(), *TOOLS.split(), "-e", str(ROOT)], check=True)
    asked = subprocess.run(
        [python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    ).stdout
    for wish in floors():
        name, _, version = re.sub(r"\[.*\]", "", wish).partition("==")
        assert re.search(rf"(?im)^{name}=={re.escape(version)}(\.0)*(\+cpu)?$", asked), wish
    bin_first = {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-x", f"--basetemp={tmp_path}/tests", *TESTED],
        cwd=ROOT,
        env={**os.environ, **bin_first},
        check=False,
    )
    assert done.returncode == 0
