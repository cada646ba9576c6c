"""Published packages that train through Lightning: the same figures with raylit in its place.

Each in an environment of its own, which takes its packages from PyPI and, where they fit, from the
environment of the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("tiny.py")
PINNED = ("torch", "torchmetrics", "ray", "mlflow", "pyarrow", "jsonargparse", "pytorch-lightning")
PACKAGES = {
    "chemprop": "chemprop==2.3.1",
    "darts": "darts[torch]==0.48.1",
    "gluonts": "gluonts[torch]==0.17.0",
    "neuralforecast": "neuralforecast==3.3.0",
    "pytorch_forecasting": "pytorch-forecasting==1.8.0",
    "scvi": "scvi-tools==1.4.2",
}


def environment(folder: Path, requirement: str) -> str:
    """Make an environment with a package; returns its Python."""
    venv.create(folder / "env", with_pip=True)
    python = str(folder / "env" / "bin" / "python")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "env" / "lib" / version / "site-packages"
    (site / "tests.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    pins = (ROOT / "cluster" / "constraints.txt").read_text().splitlines()
    kept = [line for line in pins if line.partition("==")[0] in PINNED]
    (folder / "constraints.txt").write_text("\n".join([*kept, "lightning==2.6.6"]))
    install = [python, "-m", "pip", "install", "-q", "-c", "constraints.txt", requirement]
    subprocess.run(install, cwd=folder, check=True, timeout=900)
    return python


def figures(python: str, folder: Path, *arguments: str) -> dict[str, Any]:
    work = folder / "-".join(arguments)
    work.mkdir()
    done = subprocess.run(
        [python, str(TINY), *arguments],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(one for one in done.stdout.splitlines() if one.startswith("FIGURES "))
    return json.loads(line.removeprefix("FIGURES "))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environments made so far, by package."""
    return {}


@pytest.fixture
def python(package: str, pythons: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of a package's environment, made once."""
    if package not in pythons:
        pythons[package] = environment(tmp_path_factory.mktemp(package), PACKAGES[package])
    return pythons[package]


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("package", PACKAGES)
def test_two_ray_workers(tmp_path: Path, package: str, python: str) -> None:
    """Trains on Ray, saves, loads and predicts; each rank has half of the data in its batches."""
    alone = figures(python, tmp_path, package, "raylit")
    ours = figures(python, tmp_path, package, "raylit", "2")
    assert set(ours) == set(alone)
    for name, value in ours.items():
        assert np.all(np.isfinite(value)), name
        assert np.shape(value) == np.shape(alone[name])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("package", PACKAGES)
def test_figures_are_those_of_lightning(tmp_path: Path, package: str, python: str) -> None:
    theirs = figures(python, tmp_path, package, "lightning")
    ours = figures(python, tmp_path, package, "raylit")
    assert theirs
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-4), name
