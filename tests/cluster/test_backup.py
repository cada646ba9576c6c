"""The README's backup and restore of MLflow's database, with PostgreSQL itself."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.cluster.files import texts
from tests.lazy import mlflow
from tests.tracking.postgres import Postgres, programs

# How the README comes into the database's container, in two ways.
INTO = (
    r"(?:docker compose -f \S+ exec -T postgres|"
    r"kubectl -n raylit exec (?:-i )?statefulset/postgres --) "
)


def commands(program: str) -> list[str]:
    """What stands behind the way into the container wherever the README calls a program."""
    return re.findall(rf"^{INTO}({program} .*)$", texts()["README.md"], re.MULTILINE)


def test_the_same_is_done_in_both_kinds_of_container() -> None:
    for program in ("pg_dump", "pg_restore"):
        found = commands(program)
        assert len(found) == 2 and found[0] == found[1], found


@pytest.mark.long
@pytest.mark.timeout(300)
def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    """A run that is deleted after the backup is back, one that came later is gone."""
    postgres = Postgres()
    try:
        place = {"PGHOST": "127.0.0.1", "PGPORT": str(postgres.port)}
        env = os.environ | place | {"PATH": f"{programs()}{os.pathsep}{os.environ['PATH']}"}

        def call(command: str) -> None:
            subprocess.run(
                ["bash", "-euc", command], env=env, cwd=tmp_path, check=True, timeout=120
            )

        call("createdb --username=mlflow mlflow")
        client = mlflow.MlflowClient(postgres.uri("mlflow"))
        experiment = client.create_experiment("digits", artifact_location=tmp_path.as_uri())
        kept = client.create_run(experiment).info.run_id
        client.log_metric(kept, "loss", 0.5, step=3)
        call(commands("pg_dump")[0])
        later = client.create_run(experiment).info.run_id
        client.delete_run(kept)
        call(commands("pg_restore")[0])
        found = client.search_runs([experiment])
        assert [run.info.run_id for run in found] == [kept] and later != kept
        assert client.get_metric_history(kept, "loss")[0].value == 0.5
        assert shlex.split(commands("pg_restore")[0])[-2:] == ["<", "mlflow.dump"]
    finally:
        postgres.remove()
