from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deadlines import stretched

from .conftest import Done, environment, run_raylit


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(folder: Path, port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raylit", "ui", "--port", str(port)]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(pid: int) -> list[int]:
    """The processes below one, at any depth."""
    direct = [
        int(child)
        for task in os.listdir(f"/proc/{pid}/task")
        for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
    ]
    return direct + [deeper for child in direct for deeper in children(child)]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 0, marks=pytest.mark.long), (signal.SIGTERM, 143)],
)
def test_ui_serves_the_runs_and_ends_with_its_children(
    lab: Path, main: Callable[..., Done], number: signal.Signals, code: int
) -> None:
    logger = ("--trainer.logger=MLFlowLogger", "--trainer.logger.experiment_name=shown")
    assert (
        main(
            "fit", "--model=lab.Net", "--data=lab.Diabetes", "--trainer.max_epochs=1", *logger
        ).code
        == 0
    )
    port = free_port()
    process = start(lab, port)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        page = f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning "
        assert page in lines[1], (lines, process.poll())
        newest = process.stdout.readline()
        assert f"http://127.0.0.1:{port}/#/experiments/1/runs/" in newest
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=shown",
            timeout=stretched(30),
        ) as answer:
            assert json.load(answer)["experiment"]["name"] == "shown"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert b"<html" in answer.read()
        if number == signal.SIGINT:
            taken = run_raylit(lab, "ui", "--port", str(port))
            assert taken.code == 2
            assert (
                taken.err
                == f"raylit ui: Cannot listen on 127.0.0.1:{port}: Address already in use. Give"
                f" another port: raylit ui --port {port + 1}\n"
            )
        below = children(process.pid)
        assert below
        process.send_signal(number)
        out, err = process.communicate(timeout=stretched(40))
        assert process.returncode == code, (out, err)
        assert "Traceback" not in err
        assert not [pid for pid in below if is_alive(pid)]
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
    finally:
        process.kill()


def test_ui_makes_no_empty_store(main: Callable[..., Done], lab: Path) -> None:
    done = main("ui")
    assert done.code == 2
    assert f"There is no MLflow store {lab / 'mlflow.db'}." in done.err
    assert not (lab / "mlflow.db").exists()
    assert "nowhere.db" in main("ui", "--backend-store-uri", f"sqlite:///{lab}/nowhere.db").err


def test_ui_does_not_serve_a_server(main: Callable[..., Done]) -> None:
    done = main("ui", "--backend-store-uri", "http://localhost:5000")
    assert done.code == 2
    assert "http://localhost:5000 is an MLflow server already" in done.err


def test_ui_shows_why_mlflow_could_not_start(main: Callable[..., Done], lab: Path) -> None:
    (lab / "mlflow.db").write_bytes(b"SQLite format 3\0" + b"this is no database" * 100)
    done = main("ui", "--port", str(free_port()))
    assert done.code == 1
    assert "MLflow ended with exit code" in done.err and "not a database" in done.err
