"""Where a run comes from, as MLflow's pages show it: the command line and the state of its code."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from git import Repo


def source_tags() -> dict[str, str]:
    """Return MLflow's tags of user, source and git, for the driver's process.

    MLflow itself looks for the repository around the script. Of `raylit fit` that is the command
    in the environment's folder, so here it is looked for around the current folder.
    """
    from mlflow.tracking.context.registry import resolve_tags

    tags: dict[str, str] = dict(resolve_tags())
    script = Path(sys.argv[0] or ".").resolve()
    is_command = script.name in ("raylit", "__main__.py")
    if is_command:
        tags["mlflow.source.name"] = shlex.join(["raylit", *sys.argv[1:]])
    return tags | git_tags(Path.cwd() if is_command else script.parent)


def git_tags(folder: Path) -> dict[str, str]:
    """Return commit, branch, whether files differ from it, and repository; {} if there is none."""
    # mlflow brings GitPython, which without a `git` program raises ImportError
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        import git
    except ImportError:
        return {}
    try:
        with git.Repo(folder, search_parent_directories=True) as repo:
            return _tags_of(repo)
    except (git.GitError, git.GitCommandNotFound, OSError, ValueError):
        return {}  # no repository, one without a commit, or one that this user may not read


def _tags_of(repo: Repo) -> dict[str, str]:
    tags = {
        "mlflow.source.git.commit": repo.head.commit.hexsha,
        "mlflow.source.git.dirty": str(repo.is_dirty()).lower(),
    }
    if not repo.head.is_detached:
        tags["mlflow.source.git.branch"] = repo.active_branch.name
    if repo.remotes:
        tags["mlflow.source.git.repoURL"] = repo.remotes[0].url
    return tags
