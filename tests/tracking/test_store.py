"""Stores that are made, broken, closed or misnamed, and the names and values that they take."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow.delivery import deliver
from raylit.loggers.mlflow.journal import Header, Journal, Record
from raylit.loggers.mlflow.store import REASON_TAG, Names, RunStore
from raylit.loggers.queue import Rejected
from tests.lazy import mlflow
from tests.loggers.mlflow_store import artifacts, history, opened, run_of

LOGS = (
    "import sys\nfrom raylit.loggers.mlflow.logger import MLFlowLogger\n"
    "logger = MLFlowLogger('many', sys.argv[2], save_dir=sys.argv[1])\n"
    "logger.open(default_root_dir=sys.argv[1], tags={})\n"
    "for step in range(300): logger.log_metrics({'a': step, 'b': step}, step)\n"
    "logger.finalize('success'); logger.close('success')\n"
)


def test_processes_that_make_a_database_at_once(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", LOGS, str(tmp_path)]
    processes = [
        subprocess.Popen([*command, f"run {number}"], env=env, stderr=subprocess.PIPE)
        for number in range(4)
    ]
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    assert "locked" not in "".join(errors)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "many"]
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    for run in runs:
        for name in "ab":
            found = client.get_metric_history(run.info.run_id, name)
            assert [one.step for one in found] == list(range(300))
    assert not list(tmp_path.glob("*.new"))


def test_making_a_database_that_was_interrupted_begins_anew(
    empty_database: Path, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db.new").write_bytes(empty_database.read_bytes()[:20_000])
    (tmp_path / "mlflow.db.new-journal").write_text("x")
    logger = opened(MLFlowLogger(save_dir=tmp_path), tmp_path)
    logger.close("success")
    assert run_of(logger).info.status == "FINISHED"


@pytest.mark.parametrize("kind", ["text", "cut", "half"])
def test_a_broken_database_is_recognised(empty_database: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "mlflow.db"
    if kind == "text":
        path.write_text("no database " * 100)
    elif kind == "cut":
        path.write_bytes(empty_database.read_bytes()[: empty_database.stat().st_size // 2])
    else:
        shutil.copy(empty_database, path)
        with sqlite3.connect(path) as database:
            database.execute("DROP TABLE alembic_version")
            database.execute("DROP TABLE runs")
    with pytest.raises(ConfigError) as raised:
        opened(MLFlowLogger(save_dir=tmp_path), tmp_path)
    assert f"mv {path} {path}.broken" in str(raised.value)
    assert "[SQL" not in str(raised.value)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "sqlite:///", ":memory:"])
def test_a_database_in_memory_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names no file, but a database in memory"):
        opened(MLFlowLogger(tracking_uri=uri, save_dir=tmp_path), tmp_path)


def test_a_scheme_that_nobody_knows_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot reach its store ftp://.*\n.*postgresql://"):
        opened(MLFlowLogger(tracking_uri="ftp://host/x", save_dir=tmp_path), tmp_path)


def test_what_is_no_uri_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no URI: Invalid IPv6 URL\. Give one as"):
        opened(MLFlowLogger(tracking_uri="http://[::1", save_dir=tmp_path), tmp_path)


def test_the_environment_of_mlflow_counts(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    monkeypatch.setenv("MLFLOW_RUN_NAME", "its run")
    client = mlflow.MlflowClient(uri)

    def names(logger: MLFlowLogger) -> tuple[str, str]:
        opened(logger, tmp_path).close("success")
        return client.get_experiment(str(logger.experiment_id)).name, run_of(logger).info.run_name

    assert names(MLFlowLogger(tracking_uri=uri)) == ("from the environment", "its run")
    assert names(MLFlowLogger("own", "mine", tracking_uri=uri)) == ("own", "mine")
    made = client.create_experiment("set by mlflow")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", made)  # as mlflow.set_experiment does
    mlflow.set_tracking_uri(uri)
    assert names(MLFlowLogger())[0] == "set by mlflow"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "4711")
    with pytest.raises(ConfigError, match="MLFLOW_EXPERIMENT_ID=4711 names no experiment"):
        opened(MLFlowLogger(), tmp_path)


def test_names_that_mlflow_would_make_one_stay_two(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_metrics({"acc@1": 1.0, "acc1": 2.0}, 0)
    logger.log_hyperparams({"a=b": 1, "ab": 2})
    logger.finalize("success")
    logger.log_metrics({"acc1": 4.0}, 1)  # another journal, in which the other one comes first
    logger.log_metrics({"acc@1": 3.0}, 1)
    logger.close("success")
    data = run_of(logger).data
    (other,) = {*data.metrics} - {"acc1"}
    assert other.startswith("acc1-")
    assert history(logger, "acc1") == [(0, 1.0), (1, 3.0)]
    assert history(logger, other) == [(0, 2.0), (1, 4.0)]
    assert data.tags["raylit.name.acc1"] == "acc@1"
    assert sorted(data.params.values()) == ["1", "2"]
    assert not [key for key in data.tags if key.startswith("raylit.resume")]
    names = Names({"x": "x"})
    assert [names.of("x"), names.of("x@")] == ["x", f"x-{names.of('x@')[2:]}"]
    assert names.take_new() == {names.of("x@"): "x@"} and not names.take_new()


def test_what_mlflow_cannot_keep_is_said(uri: str, tmp_path: Path, said: list[str]) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    for step, value in enumerate((math.inf, -math.inf, math.nan, 0.5)):
        logger.log_metrics({"loss": value}, step)
    with pytest.warns(UserWarning, match=r"up to 2\^63 - 1"):
        logger.log_metrics({"loss": 1.0}, 2**63)
    with pytest.warns(UserWarning, match="prompt was cut; the whole is in the artifacts"):
        logger.log_hyperparams({"prompt": "x" * 7000})
    logger.close("success")
    values = [value for _, value in history(logger, "loss")]
    assert values[0] > 1e308 and values[1] < -1e308 and math.isnan(values[2]) and values[3] == 0.5
    assert len([text for text in said if "MLflow has no infinity" in text]) == 1
    assert artifacts(logger) == ["config/long_parameters.json"]


def test_what_a_store_refuses_does_not_block_the_others(
    uri: str, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    write = RunStore.write
    tried: list[int] = []

    def refusing(self: RunStore, entries: list[Record]) -> None:
        if any(entry.key == "bad" and entry.step % 2 for entry in entries):
            raise Rejected("a proxy does not like it")
        if any(entry.key == "breaks" for entry in entries):
            tried.append(len(entries))
            raise RuntimeError("the store fails over it, always")
        write(self, entries)

    monkeypatch.setattr(RunStore, "write", refusing)
    header = Header(str(logger.run_id), uri, 0, "")
    journal = Journal(str(tmp_path), header)
    for step in range(30):
        journal.log_metrics({"good": float(step), "bad": float(step)}, step)
    journal.log_metrics({"breaks": 0.0}, 3)
    journal.log_metrics({"last": 1.0}, 4)
    journal.close()
    monkeypatch.setattr("raylit.loggers.mlflow.delivery.RETRY_S", 0.0)
    assert deliver(journal.path, uri)
    assert history(logger, "good") == [(step, float(step)) for step in range(30)]
    assert history(logger, "bad") == [(step, float(step)) for step in range(0, 30, 2)]
    assert history(logger, "last") == [(4, 1.0)]
    assert any("a proxy does not like it" in text for text in said)
    assert tried[:3] == tried[:1] * 3, "the store may be in trouble: it is tried again"
    logger.explain("ValueError: no such head", "Traceback ...")
    logger.close("failed")
    assert run_of(logger).data.tags[REASON_TAG] == "ValueError: no such head"
    assert artifacts(logger) == ["errors/traceback.txt"]
