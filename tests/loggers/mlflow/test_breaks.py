from __future__ import annotations

import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow.spool import Spool, replay
from raylit.loggers.mlflow.store import Record
from raylit.loggers.queue import BackgroundWriter, Rejected
from tests.deadlines import stretched
from tests.loggers.mlflow_store import (
    Callback,
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
    with pytest.raises(ConfigError, match="cannot reach its store postgresql://me:"):
        opened(
            MLFlowLogger(tracking_uri=f"postgresql://me:secret@127.0.0.1:{free_port()}/db"),
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
    assert len([text for text in said if "is not on this machine" in text]) == 1
    (tmp_path / "away.db").rename(path)
    worker.finalize("success")
    driver.close("success")
    assert history(driver, "loss") == [(step, float(step)) for step in range(100)]
    assert run_of(driver).data.params == {"lr": "0.1"}
    assert run_of(driver).info.status == "FINISHED"


def test_a_server_that_goes_away_for_good(
    uri: str, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BackgroundWriter.close, "__defaults__", (1.0, None))  # instead of 30 s
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger._tracking_uri = f"http://127.0.0.1:{free_port()}"
    start = time.monotonic()
    for step in range(100):
        logger.log_metrics({"loss": float(step)}, step)
    assert time.monotonic() - start < 0.5
    logger.finalize("success")
    with pytest.warns(UserWarning, match="may go on showing"):
        logger.close("success")
    assert time.monotonic() - start < 12
    assert any("100 for which there was no time" in text for text in said)


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
        assert (
            logger.where()
            == f"http://127.0.0.1:{port}/#/experiments/{logger.name}/runs/{logger.version}"
        )
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
        callback: Any = Callback(tmp_path / "checkpoints")
        callback.save("best.ckpt", 0.5)
        logger.after_save_checkpoint(callback)
        logger.finalize("success")
        logger.close("success")
        assert slowest_s < 0.1
        assert history(logger, "loss") == [(step, float(step)) for step in range(60)]
        assert artifacts(logger) == ["best/aliases.txt", "best/best.ckpt", "best/metadata.yaml"]
        assert run_of(logger).info.status == "FINISHED"
        assert len([text for text in said if "Could not write (metrics" in text]) == 1
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
    monkeypatch.setattr(BackgroundWriter.close, "__defaults__", (0.5, None))  # instead of 30 s
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
    worker.finalize("success")
    with pytest.warns(UserWarning, match="may go on showing"):
        driver.close("success")
    assert any("kept for the next run" in text for text in said)
    unsent = list((tmp_path / "files" / "unsent").iterdir())
    assert [file.suffix for file in unsent] == [".jsonl"] * 2  # the worker's and the driver's
    (tmp_path / "away.db").rename(path)
    second = opened(MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "files"), tmp_path)
    assert not list((tmp_path / "files" / "unsent").iterdir())
    assert [step for step, _ in history(driver, "loss")] == list(range(50))
    run = run_of(driver)
    assert (run.data.params, run.info.status) == ({"lr": "0.1"}, "FINISHED")
    assert artifacts(driver) == ["config.yaml"]
    assert any("Sent to MLflow what an earlier run could not" in text for text in said)
    second.close("success")


def test_a_process_that_is_killed_while_the_store_is_away_leaves_what_waited(
    empty_database: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    uri = f"sqlite:///{path}"
    driver = opened(MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "files"), tmp_path)
    path.rename(tmp_path / "away.db")
    script = (
        "import os, pickle, signal, sys, time\nlogger = pickle.load(sys.stdin.buffer)\nfor step in"
        " range(20): logger.log_metrics({'loss': float(step)}, step)\nfolder ="
        " os.path.join(logger.save_dir, 'unsent')\nwhile not (os.path.isdir(folder) and"
        " any(name.endswith('.jsonl') for name in os.listdir(folder))):"
        " time.sleep(0.05)\nos.kill(os.getpid(), signal.SIGKILL)\n"
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
    assert len(history(again, "loss")) >= 1
    again.close("success")


def test_the_file_goes_when_the_store_is_back(empty_database: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(empty_database, tmp_path / "mlflow.db"))
    logger = opened(
        MLFlowLogger(tracking_uri=f"sqlite:///{path}", save_dir=tmp_path / "files"), tmp_path
    )
    path.rename(tmp_path / "away.db")
    logger.log_metrics({"loss": 0.5}, 0)
    deadline = time.monotonic() + stretched(10)
    while not list((tmp_path / "files").glob("unsent/*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list((tmp_path / "files").glob("unsent/*.jsonl"))
    (tmp_path / "away.db").rename(path)
    logger.finalize("success")
    assert not list((tmp_path / "files").glob("unsent/*"))
    assert history(logger, "loss") == [(0, 0.5)]
    logger.close("success")


def test_what_another_store_did_not_take_stays(tmp_path: Path, said: list[str]) -> None:
    spool = Spool(str(tmp_path), "http://me:secret@elsewhere:5000", "0" * 32)
    assert spool.hold(
        [Record("metric", "loss", 0.5, 1, 2), Record("metric", "nan", math.nan, 1, 2)]
    )
    assert "secret" not in spool.path.read_text()
    written: list[Record] = []
    assert (
        replay(str(tmp_path), "http://here:5000", lambda run_id, entries: written.extend(entries))
        == 0
    )
    assert spool.path.exists()

    def refuse_nan(run_id: str, entries: list[Record]) -> None:
        if any(entry.key == "nan" for entry in entries):
            raise Rejected("NaN")
        written.extend(entries)

    def fail(run_id: str, entries: list[Record]) -> None:
        raise ConnectionError("no route")

    assert replay(str(tmp_path), "http://me:other@elsewhere:5000", fail) == 0
    assert any("no route" in text for text in said)
    assert replay(str(tmp_path), "http://me:other@elsewhere:5000", refuse_nan) == 2
    assert written == [Record("metric", "loss", 0.5, 1, 2)]
    assert not spool.path.exists()
    torn = spool.path.with_name("torn.jsonl")
    torn.write_text('{"uri": "x"')
    assert replay(str(tmp_path), "x", fail) == 0
    assert torn.exists()


def test_a_folder_that_cannot_be_written_does_not_raise(tmp_path: Path, said: list[str]) -> None:
    (tmp_path / "unsent").touch()
    assert not Spool(str(tmp_path), "http://host", "run").hold([Record("metric", "loss", 0.5)])
    assert any("could not be kept" in text for text in said)
