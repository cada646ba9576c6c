"""The wheel and the sdist, as they would be published: built, installed and used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.deadlines import stretched

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?:|#)[^)]*\)")  # to a file of the project
SMOKE = """\
import raylit as pl
from raylit.testing import TinyModel

assert pl.__file__.startswith(FOLDER), pl.__file__
trainer = pl.Trainer(max_epochs=1, logger=False, enable_checkpointing=False, accelerator="cpu")
print(trainer.fit(TinyModel()).steps, "steps")
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment or None,
        capture_output=True,
        text=True,
        timeout=stretched(240),
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, of the files that git knows."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "--outdir", str(folder / "dist"), cwd=source)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


def test_the_wheel_holds_the_package_alone_and_works(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"raylit"}
    assert "raylit/py.typed" in names
    assert any(name.startswith("raylit/cli/template/") for name in names)
    installed = tmp_path / "installed"
    install = ["install", "--quiet", "--no-deps", "--target", str(installed), str(wheel)]
    run(sys.executable, "-m", "pip", *install, cwd=tmp_path)
    alone = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    script = SMOKE.replace("FOLDER", repr(str(installed)))
    assert "4 steps" in run(sys.executable, "-P", "-c", script, cwd=tmp_path, **alone)
    version = run(sys.executable, "-P", "-m", "raylit", "--version", cwd=tmp_path, **alone)
    assert version.split()[1] in wheel.name


def test_the_page_of_the_package_has_no_link_that_leads_nowhere(built: tuple[Path, Path]) -> None:
    """README's links to files of the project are plain text there; the rest is as it is."""
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        headers, _, page = archive.read(name).decode().partition("\n\n")
    assert "Description-Content-Type: text/markdown" in headers
    readme = (ROOT / "README.md").read_text()
    assert LINK.search(readme)
    assert LINK.search(page) is None
    assert "Quickstart" in page
    assert len(page) > len(readme) * 0.7


def test_the_sdist_holds_what_its_tests_need(built: tuple[Path, Path]) -> None:
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in ("raylit/__init__.py", "tests/conftest.py", "docs/quickstart.md", "LICENSE"):
        assert wanted in names
    assert not any("__pycache__" in name or name.startswith("raylit_runs") for name in names)


def other_pythons() -> dict[str, str]:
    """Return the paths of this machine's other Pythons that the classifiers name, by version."""
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = {}
    for version in classifiers:
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            continue
        for path in (f"python{version}", *map(str, pyenv.glob(f"{version}.*/bin/python"))):
            try:  # one that pyenv stands in for may be there, and not run
                subprocess.run([path, "--version"], check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError):
                continue
            found[version] = path
            break
    return found


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_it_works_in_other_pythons(version: str, tmp_path: Path) -> None:
    """Every module, a fit, MLflow and Ray workers. Long: PyPI's torch brings CUDA, gigabytes."""
    others = other_pythons()
    if version not in others:
        pytest.skip(f"this machine has no Python {version}")
    run(others[version], "-m", "venv", str(tmp_path / "venv"), cwd=tmp_path)
    own = str(tmp_path / "venv/bin/python")
    install = ["-m", "pip", "install", "--quiet", "-c", str(ROOT / "cluster/constraints.txt")]
    subprocess.run([own, *install, str(ROOT)], cwd=tmp_path, check=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    said = run(own, "-P", str(ROOT / "tests/smoke.py"), cwd=tmp_path, **clean)
    assert f"Python {version}." in said and "2 workers: 4 steps" in said
