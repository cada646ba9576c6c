from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raylit.cli.runs import sparkline
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow.store import PROCESS_TAG
from raylit.runtime.processes import ProcessName
from tests.lazy import mlflow
from tests.loggers.conftest import empty_database, no_settings_of_the_user  # noqa: F401
from tests.loggers.mlflow_store import opened, run_of

from .conftest import Done


@pytest.fixture
def uri(empty_database: Path, lab: Path) -> str:  # noqa: F811
    return f"sqlite:///{shutil.copy(empty_database, lab / 'mlflow.db')}"


def made(uri: str, folder: Path, name: str, loss: float, **params: Any) -> MLFlowLogger:
    logger = opened(MLFlowLogger("runs", name, tracking_uri=uri, save_dir=folder / "files"), folder)
    logger.log_hyperparams(params)
    for step in range(5):
        logger.log_metrics({"val_loss": loss + 4 - step, "epoch": 0.0}, step)
    logger.finalize("success")
    logger.close("success")
    return logger


def test_runs_are_listed_shown_compared_and_deleted(
    uri: str, lab: Path, main: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    first = made(uri, lab, "first", 0.5, lr=0.1, width=8)
    second = made(uri, lab, "second", 0.25, lr=0.2, width=8)
    child = opened(first.child("trial-0", {}), lab)
    child.close("killed")
    listed = main("runs")
    assert listed.code == 0, listed.err
    lines = listed.out.splitlines()
    assert "val_loss" in lines[0]
    assert next(line for line in lines if "second" in line).split()[-1] == "0.25"
    place = next(number for number, line in enumerate(lines) if " first " in line)
    assert "└ trial-0" in lines[place + 1] and "killed" in lines[place + 1]
    assert "second" not in main("runs", "--filter", "metrics.val_loss > 0.3").out
    shown = main("runs", "show", str(first.run_id)[:8]).out
    assert "finished" in shown and "█" in shown and "0.1" in shown
    compared = main("runs", "compare", "first", "second").out
    assert "lr" in compared and "width" not in compared
    best = main("runs", "best", "val_loss").out.splitlines()
    assert "second" in best[1] and "first" in best[2]
    assert main("runs", "best", "val_los").code == 2
    assert "lr: 0.1 0.2" in main("runs", "diff", "first", "second").out
    tailed = main("runs", "tail", "second").out
    assert "step        4" in tailed and "val_loss 0.25" in tailed and "finished" in tailed
    assert main("runs", "rm", "second").code == 2
    assert main("runs", "rm", "second", "--yes").code == 0
    assert "second" not in main("runs").out
    assert run_of(second).info.lifecycle_stage == "deleted"
    unknown = main("runs", "show", "nothing")
    assert unknown.code == 2 and "There is no run 'nothing'" in unknown.err


def test_what_does_not_fit_is_left_out_and_nothing_is_cut(
    uri: str, lab: Path, main: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(uri, lab, "a-run-with-a-long-name", 0.5)
    monkeypatch.setenv("COLUMNS", "46")
    head, row = main("runs").out.splitlines()
    assert head.split() == ["run", "name", "val_loss"]
    assert row.split()[1:] == ["a-run-with-a-long-name", "0.5"]
    monkeypatch.delenv("COLUMNS")
    head, row = main("runs").out.splitlines()  # into a file
    assert head.split() == ["run", "name", "status", "began", "took", "val_loss"]


def test_a_run_whose_process_is_gone_was_killed(
    uri: str, lab: Path, main: Callable[..., Done]
) -> None:
    logger = opened(MLFlowLogger("runs", "dies", tracking_uri=uri, save_dir=lab / "files"), lab)
    name = ProcessName.parse(run_of(logger).data.tags[PROCESS_TAG])
    assert name == ProcessName.of_this()
    assert "running" in main("runs").out
    client = mlflow.MlflowClient(uri)
    script = "from raylit.runtime.processes import ProcessName; print(ProcessName.of_this())"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    gone = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env)
    client.set_tag(str(logger.run_id), PROCESS_TAG, gone.stdout.strip())
    assert "killed (its process is gone)" in main("runs").out
    assert run_of(logger).info.status == "KILLED"
    client.update_run(str(logger.run_id), status="RUNNING")
    next_one = opened(MLFlowLogger("runs", tracking_uri=uri, save_dir=lab / "files"), lab)
    assert run_of(logger).info.status == "KILLED"
    next_one.close("success")


def test_a_run_elsewhere_that_is_silent_is_lost(
    uri: str, lab: Path, main: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = opened(MLFlowLogger("runs", "far", tracking_uri=uri, save_dir=lab / "files"), lab)
    client = mlflow.MlflowClient(uri)
    client.set_tag(str(logger.run_id), PROCESS_TAG, "elsewhere:b:n:1:2")
    assert "running" in main("runs").out
    before = time.time
    monkeypatch.setattr(time, "time", lambda: before() + 700)
    assert "lost (silent for 12 min)" in main("runs").out
    assert run_of(logger).info.status == "RUNNING"
    assert main("runs", "ls", "--mark-killed").code == 0
    assert run_of(logger).info.status == "KILLED"


def test_what_a_killed_process_left_is_sent(uri: str, lab: Path, main: Callable[..., Done]) -> None:
    logger = opened(MLFlowLogger("runs", "left", tracking_uri=uri, save_dir=lab / "files"), lab)
    import pickle

    script = (
        "import os, pickle, signal, sys\nlogger = pickle.load(sys.stdin.buffer)\nfor step in"
        " range(20): logger.log_metrics({'loss': float(step)}, step)\nos.kill(os.getpid(),"
        " signal.SIGKILL)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", script]
    subprocess.run(command, input=pickle.dumps(logger), env=env, check=False)
    sent = main("sync")
    assert sent.code == 0 and "20 records of the run" in sent.out, sent
    found = mlflow.MlflowClient(uri).get_metric_history(str(logger.run_id), "loss")
    assert [one.step for one in found] == list(range(20))
    assert "Nothing waits for MLflow" in main("sync").out
    (lab / "files" / "journals" / "x.journal").write_text("no journal")
    kept = main("sync", str(lab))
    assert kept.code == 1 and "is no journal of raylit" in kept.out.replace("\n", "")
    assert main("sync", "nowhere").code == 2
    logger.close("success")


def test_commands_that_look_at_runs_load_no_torch(lab: Path) -> None:
    script = (
        "import sys\nfrom raylit.cli.command import main\nmain(['runs', 'show', 'x'])\n"
        "main(['sync'])\nassert not {'torch', 'ray', 'jsonargparse'} & {*sys.modules}\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    (lab / "mlflow.db").unlink(missing_ok=True)
    subprocess.run([sys.executable, "-c", script], cwd=lab, env=env, check=True)


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([0.0, float("nan"), 7.0]) == "▁ █"
    assert sparkline([float("inf")]) == " "
    assert len(sparkline([*map(float, range(1000))])) == 24
    assert sparkline([*map(float, range(1000))])[-1] == "█"
