"""`raylit init`: a project that passes its own tests at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raylit.cli.command import main
from tests.deadlines import stretched


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=stretched(300),
    )


def test_a_new_project_passes_its_own_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my-project"]) == 0
    assert "cd my-project && python -m pytest" in capsys.readouterr().out
    project = tmp_path / "my-project"
    assert not list(tmp_path.glob(".init*"))
    done = run(project, "pytest", "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    shown = run(project, "raylit", "fit", "--config", "configs/fit.yaml", "--print_config")
    assert "my_project.model.Classifier" in shown.stdout, shown.stderr
    own = run(project, "ruff", "check", "--select", "E,W,F", "--line-length", "100", ".")
    assert own.returncode == 0, own.stdout
    before = {path: path.read_bytes() for path in project.rglob("*.py")}
    assert main(["init", "my-project"]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in project.rglob("*.py")}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "takes one name"),
        (["one", "two"], "takes one name"),
        (["3d"], "no Python package can be called '3d'"),
        (["class"], "no Python package"),
        (["json"], "stand in the way of another"),
        (["torch"], "stand in the way of another"),
    ],
)
def test_a_name_that_cannot_be_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", *args]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
