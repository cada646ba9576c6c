from __future__ import annotations

import dataclasses
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow import sender
from raylit.loggers.mlflow.runs import end_gone
from raylit.loggers.mlflow.store import PROCESS_TAG
from raylit.runtime.processes import ProcessName
from tests.deadlines import stretched
from tests.loggers.mlflow_store import (
    ManualCheckpoint,
    artifacts,
    free_port,
    history,
    opened,
    run_of,
    start_server,
    wait_for_server,
)


def test_a_server_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(
        ConfigError, match=r"cannot reach its store http://.*\n.*mlflow server"
    ) as raised:
        opened(MLFlowLogger(tracking_uri=f"http://me:secret@127.0.0.1:{free_port()}"), tmp_path)
    assert "secret" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"cannot reach its store postgresql\+psycopg2://me:"):
        opened(
            MLFlowLogger(
                tracking_uri=f"postgresql+psycopg2://me:secret@127.0.0.1:{free_port()}/db"
            ),
            tmp_path,
        )
    assert time.monotonic() - start < 15


def test_a_folder_that_cannot_be_made_is_an_error_at_once() -> None:
    with pytest.raises(ConfigError, match="cannot reach its store sqlite:"):
        opened(MLFlowLogger(), Path("/proc/nowhere"))


def test_a_database_that_goes_away_and_comes_back(
    empty_database: Path, tmp_path: Path, said: list[str]
) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    driver = opened(MLFlowLogger(tracking_uri=f"sqlite:///{path}"), tmp_path)
    worker: MLFlowLogger = pickle.loads(pickle.dumps(driver))
    path.rename(tmp_path / "away.db")
    start = time.monotonic()
    worker.log_hyperparams({"lr": 0.1})
    for step in range(100):
        worker.log_metrics({"loss": float(step)}, step)
    assert time.monotonic() - start < 2  # mlflow is loaded already
    time.sleep(0.5)
    with pytest.raises(FileNotFoundError, match="need a server"):
        _ = worker.experiment
    assert not path.exists(), "no empty database may be made in its place"
    (tmp_path / "away.db").rename(path)
    worker.finalize("success")
    driver.close("success")
    assert history(driver, "loss") == [(step, float(step)) for step in range(100)]
    assert run_of(driver).data.params == {"lr": "0.1"}
    assert run_of(driver).info.status == "FINISHED"


def test_a_server_that_goes_away_for_good(
    uri: str, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "GIVE_UP_S", 1.0)
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger._tracking_uri = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    for step in range(100):
        logger.log_metrics({"loss": float(step)}, step)
    assert time.monotonic() - start < 0.5
    with pytest.warns(UserWarning, match="has not taken all"):
        logger.finalize("success")
    monkeypatch.setattr(sender, "GIVE_UP_S", 1000.0)  # which is not waited again
    with pytest.warns(UserWarning, match="may go on showing"):
        logger.close("success")
    assert time.monotonic() - start < stretched(20)
    assert len(list((tmp_path / "mlruns" / "journals").iterdir())) == 2


@pytest.mark.slow
def test_a_server_that_is_restarted_loses_nothing(
    empty_database: Path, tmp_path: Path, said: list[str]
) -> None:
    database, port = Path(shutil.copy(empty_database, tmp_path / "mlflow.db")), free_port()
    server = start_server(database, port)
    try:
        wait_for_server(port)
        logger = opened(
            MLFlowLogger(tracking_uri=f"http://127.0.0.1:{port}", log_model=True), tmp_path
        )
        page = f"/#/experiments/{logger.name}/runs/{logger.version}?workflowType=machine_learning"
        assert logger.where() == f"http://127.0.0.1:{port}{page}"
        slowest_s = 0.0
        for step in range(60):
            if step == 20:
                time.sleep(1)  # let some be written
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
            if step == 40:
                time.sleep(1)
                server = start_server(database, port)
            start = time.monotonic()
            logger.log_metrics({"loss": float(step), "epoch": 0.0}, step)
            slowest_s = max(slowest_s, time.monotonic() - start)
        callback = ManualCheckpoint(tmp_path / "checkpoints")
        callback.write("best.ckpt", 0.5)
        logger.after_save_checkpoint(callback)
        logger.finalize("success")
        logger.close("success")
        assert slowest_s < 0.1
        assert history(logger, "loss") == [(step, float(step)) for step in range(60)]
        assert artifacts(logger) == ["best/aliases.txt", "best/best.ckpt", "best/metadata.yaml"]
        assert run_of(logger).info.status == "FINISHED"
        assert len([text for text in said if "Could not send to MLflow" in text]) == 1
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_arguments_are_checked() -> None:
    with pytest.raises(ConfigError, match="log_model='best'"):
        MLFlowLogger(log_model="best")  # type: ignore[arg-type]


# --- what waits on the disk ---


def test_what_a_dead_server_did_not_take_is_sent_by_the_next_run(
    empty_database: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "GIVE_UP_S", 0.5)
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    uri = f"sqlite:///{path}"
    driver = opened(MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "files"), tmp_path)
    path.rename(tmp_path / "away.db")
    rows = [({"loss": float(step), "epoch": 0.0}, step) for step in range(50)]
    worker: MLFlowLogger = pickle.loads(pickle.dumps(driver))
    worker.log_hyperparams({"lr": 0.1})
    worker.log_text("seed: 1", "config.yaml")
    for metrics, step in rows:
        worker.log_metrics(metrics, step)
    with pytest.warns(UserWarning, match="the next run with this save_dir sends it"):
        worker.finalize("success")
    with pytest.warns(UserWarning, match="may go on showing"):
        driver.close("success")
    journals = list((tmp_path / "files" / "journals").iterdir())
    assert [file.suffix for file in journals] == [".journal"] * 2  # the worker's and the driver's
    (tmp_path / "away.db").rename(path)
    second = opened(MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "files"), tmp_path)
    assert not list((tmp_path / "files" / "journals").iterdir())
    assert [step for step, _ in history(driver, "loss")] == list(range(50))
    run = run_of(driver)
    assert (run.data.params, run.info.status) == ({"lr": "0.1"}, "FINISHED")
    assert artifacts(driver) == ["config.yaml"]
    assert any("Sent to MLflow what an earlier process could not" in text for text in said)
    second.close("success")


def test_a_process_that_is_killed_leaves_all_that_it_logged(
    empty_database: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    uri = f"sqlite:///{path}"
    driver = opened(MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "files"), tmp_path)
    path.rename(tmp_path / "away.db")
    script = (
        "import os, pickle, signal, sys\nlogger = pickle.load(sys.stdin.buffer)\nfor step in"
        " range(20): logger.log_metrics({'loss': float(step)}, step)\nos.kill(os.getpid(),"
        " signal.SIGKILL)\n"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(driver),
        env=env,
        timeout=stretched(60),
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (tmp_path / "away.db").rename(path)
    again = opened(
        MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "files", run_id=driver.run_id), tmp_path
    )
    assert history(again, "loss") == [(step, float(step)) for step in range(20)]
    again.close("success")


def test_the_parent_sends_what_a_child_that_was_killed_has_logged(
    empty_database: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"
    parent = opened(MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "files"), tmp_path)
    script = (
        "import os, pickle, signal, sys\nchild = pickle.load(sys.stdin.buffer)\n"
        f"child.open(default_root_dir={str(tmp_path)!r}, tags={{}})\n"
        "for step in range(20): child.log_metrics({'loss': float(step)}, step)\n"
        "print(child.run_id, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=pickle.dumps(parent.child("trial-001", {})),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        timeout=stretched(60),
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    run_id = done.stdout.decode().split()[-1]
    client = parent.experiment
    assert client.get_run(run_id).info.status == "RUNNING"
    parent.settle_children()
    parent.close_children("success", [run_id])
    found = client.get_metric_history(run_id, "loss")
    assert [one.value for one in found] == [float(step) for step in range(20)]
    assert client.get_run(run_id).info.status == "FINISHED"
    parent.close("success")


def test_what_another_store_did_not_take_stays(
    empty_database: Path, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "GIVE_UP_S", 0.5)
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{path}", save_dir=tmp_path / "files")
    opened(logger, tmp_path).log_metrics({"loss": 0.5}, 0)
    path.unlink()
    with pytest.warns(UserWarning, match="has not taken all"):
        logger.finalize("success")
    other = opened(MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "files"), tmp_path)
    other.close("success")
    assert len(list((tmp_path / "files" / "journals").iterdir())) == 1


def test_a_folder_that_cannot_be_written_does_not_raise(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "journals").touch()
    logger = opened(MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "files"), tmp_path)
    with pytest.warns(UserWarning, match="No journal can be kept"):
        logger.log_metrics({"loss": 0.5}, 0)
    logger.close("success")
    assert history(logger, "loss") == [(0, 0.5)]


class OldServer(BaseHTTPRequestHandler):
    """Hands on to a server of today all but what servers of MLflow 2 did not know."""

    to = ""

    def do_GET(self) -> None:
        if "/logged-models" in self.path:
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {key: one for key, one in self.headers.items() if key != "Host"}
        request = urllib.request.Request(self.to + self.path, body or None, headers)
        request.method = self.command
        try:
            answer = urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            content = answer.read()
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_a_server_without_models_gets_all_else(
    empty_database: Path, tmp_path: Path, said: list[str]
) -> None:
    port = free_port()
    server = start_server(Path(shutil.copy(empty_database, tmp_path / "mlflow.db")), port)
    OldServer.to = f"http://127.0.0.1:{port}"
    old = ThreadingHTTPServer(("127.0.0.1", 0), OldServer)
    Thread(target=old.serve_forever, daemon=True).start()
    try:
        wait_for_server(port)
        logger = opened(MLFlowLogger(tracking_uri=f"http://127.0.0.1:{old.server_port}"), tmp_path)
        callback = ManualCheckpoint(tmp_path / "checkpoints")
        callback.write("best.ckpt", 0.5)
        logger.after_save_checkpoint(callback)
        logger.log_metrics({"loss": 0.5}, 1)
        logger.finalize("success")
        logger.close("success")
        assert run_of(logger).info.status == "FINISHED"
        assert history(logger, "loss") == [(1, 0.5)]
        assert sum("has no models of runs" in text for text in said) == 1
        client = logger.experiment
        client.update_run(logger.run_id, "RUNNING")
        gone = dataclasses.replace(ProcessName.of_this(), started=1)
        client.set_tag(logger.run_id, PROCESS_TAG, str(gone))
        assert end_gone(client, [run_of(logger).info.experiment_id]) == 1
        assert run_of(logger).info.status == "KILLED"
    finally:
        old.shutdown()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
