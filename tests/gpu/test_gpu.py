"""That `python -m tests.gpu` runs all checks, here without a GPU, and tells by its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.deadlines import stretched

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.gpu", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=stretched(240))


def test_all_checks_run_on_the_cpu() -> None:
    done = run("--cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert {mark for mark, *_ in rows} == {"ok"}
    names = {name for _, name, *_ in rows}
    checks = "results resume ranks largest_batch syncs overlap checkpoint speed imports"
    assert names == set(checks.split())


def test_nothing_checked_is_no_success() -> None:
    done = run("--cpu", "--only", "nothing of that name")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2


def test_the_packages_that_are_carried_along_are_enough(tmp_path: Path) -> None:
    """Beside torch and what torch itself needs; no other package is to be found."""
    assert run("--carry", str(tmp_path)).returncode == 0
    assert not list(tmp_path.rglob("*.so"))
    script = f"""
import sys
import torch._dynamo  # and what torch itself needs
for name in [name for name in sys.modules if name.partition(".")[0] == "fsspec"]:
    del sys.modules[name]
site = [path for path in sys.path if path.endswith("-packages")]
sys.path = [path for path in sys.path if path not in site] + [{str(tmp_path)!r}, {str(ROOT)!r}]
import yaml, rich.console, torchmetrics, fsspec
import raylit as pl
for module in (yaml, rich, torchmetrics, fsspec):
    assert module.__file__.startswith({str(tmp_path)!r}), module.__file__
from raylit.testing import TinyModel
pl.Trainer(
    max_epochs=1, default_root_dir={str(tmp_path / "root")!r}, accelerator="cpu"
).fit(TinyModel())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=stretched(120)
    )
    assert done.returncode == 0, done.stderr
