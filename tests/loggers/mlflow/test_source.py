"""Where a run comes from: the command, and the repository of its code."""

from __future__ import annotations

from pathlib import Path

import pytest

from raylit.loggers.mlflow.source import source_tags


def repository(folder: Path) -> str:
    """Make a repository with one commit and return that."""
    import git

    folder.mkdir()
    (folder / "net.py").write_text("width = 3\n")
    with git.Repo.init(folder, initial_branch="trunk") as repo:
        repo.index.add(["net.py"])
        repo.create_remote("origin", "https://host.invalid/net.git")
        author = git.Actor("Ada", "ada@host.invalid")
        return repo.index.commit("A net", author=author, committer=author).hexsha


def test_a_command_is_told_with_the_repository_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository(tmp_path / "mine")
    (tmp_path / "mine" / "configs").mkdir()
    monkeypatch.chdir(tmp_path / "mine" / "configs")
    monkeypatch.setattr("sys.argv", ["/opt/venv/bin/raylit", "fit", "--config", "my net.yaml"])
    tags = source_tags()
    assert tags["mlflow.source.name"] == "raylit fit --config 'my net.yaml'"
    assert tags["mlflow.source.git.commit"] == commit
    assert tags["mlflow.source.git.branch"] == "trunk"
    assert tags["mlflow.source.git.repoURL"] == "https://host.invalid/net.git"
    assert tags["mlflow.source.git.dirty"] == "false"
    (tmp_path / "mine" / "net.py").write_text("width = 4\n")
    assert source_tags()["mlflow.source.git.dirty"] == "true"


def test_a_script_is_told_with_the_repository_that_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "mine" / "net.py")])
    assert source_tags()["mlflow.source.git.commit"] == commit


@pytest.mark.parametrize("kind", ["none", "without a commit", "broken"])
def test_no_repository_costs_nothing_but_its_tags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import git

    if kind != "none":
        git.Repo.init(tmp_path).close()
    if kind == "broken":
        (tmp_path / ".git" / "HEAD").write_text("ref: nowhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["/opt/venv/bin/raylit", "fit"])
    tags = source_tags()
    assert tags["mlflow.source.name"] == "raylit fit"
    assert not any("git" in name for name in tags)
