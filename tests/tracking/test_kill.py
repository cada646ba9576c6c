"""Whatever dies and whenever, each value is in the run once, as if nothing had died."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deadlines import stretched
from tests.lazy import mlflow
from tests.loggers.mlflow_store import free_port, start_server, wait_for_server
from tests.tracking.log import expected
from tests.tracking.proxy import Proxy

ROOT = Path(__file__).parents[2]
STEPS = 150


def start(folder: Path, uri: str, pause_s: float) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.tracking.log"]
    return subprocess.Popen(
        [*command, str(folder), uri, str(STEPS), str(pause_s)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), *sys.path]))},
        stderr=(folder / "errors").open("ab"),
    )


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def kill_until_it_ends(
    folder: Path,
    uri: str,
    dice: random.Random,
    pause_s: float = 0.01,
    most: int = 4,
    meanwhile: Callable[[], Any] = lambda: None,
) -> int:
    """Start the logging and kill it at random moments, `most` times at most; returns how often."""
    for killed in range(most + 1):
        before = size_of(folder / "steps")
        process = start(folder, uri, pause_s)
        try:
            while process.poll() is None and size_of(folder / "steps") == before:
                time.sleep(0.005)
            meanwhile()
            try:
                process.wait(dice.uniform(0, STEPS * pause_s) if killed < most else stretched(120))
            except subprocess.TimeoutExpired:
                assert killed < most, "it does not end"
                process.send_signal(signal.SIGKILL)
            code = process.wait(60)
        finally:
            process.kill()
            process.wait()
        if code == 0:
            return killed
        assert code == -signal.SIGKILL, (folder / "errors").read_text()
    raise AssertionError("it does not come forward")


def check_whole(folder: Path, uri: str) -> None:
    """Each value is there once, in the order of its steps, and the run has ended well."""
    client = mlflow.MlflowClient(uri)
    run = client.get_run((folder / "run_id").read_text())
    assert (run.info.status, run.data.params) == ("FINISHED", {"lr": "0.1"})
    wanted = expected(STEPS)
    assert {*run.data.metrics} == {name for name, _ in wanted}
    for name in run.data.metrics:
        found = client.get_metric_history(run.info.run_id, name)
        steps = [step for key, step in wanted if key == name]
        assert [one.step for one in found] == steps, name
        values = [one.value for one in found]
        assert str(values) == str([wanted[name, step] for step in steps]), name
    assert not list((folder / "journals").glob("*")), "what the store has is not kept"


@pytest.mark.parametrize("seed", range(3))
def test_the_trainer(empty_database: Path, tmp_path: Path, seed: int) -> None:
    path = shutil.copy(empty_database, tmp_path / "mlflow.db")
    dice = random.Random(seed)
    folder = tmp_path / "run"
    most = 1 if seed else 2
    assert kill_until_it_ends(folder, f"sqlite:///{path}", dice, most=most) > 0
    check_whole(folder, f"sqlite:///{path}")


def check_with_server(database: Path, tmp_path: Path, seed: int) -> None:
    """Kill the trainer and the server, with a network that is slow, breaks and loses answers."""
    path = Path(shutil.copy(database, tmp_path / "mlflow.db"))
    dice = random.Random(seed)
    port = free_port()
    server = start_server(path, port)
    proxy = Proxy(port, seed)
    uri = f"http://127.0.0.1:{proxy.port}"

    def disturb() -> None:
        nonlocal server
        proxy.cuts = dice.choice([0.0, 0.3, 0.6])
        proxy.refuses = dice.choice([0.0, 0.3])
        proxy.delays_s = dice.choice([0.0, 1.0])
        time.sleep(dice.uniform(0, 3))
        if dice.random() < 0.5:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            time.sleep(dice.uniform(0, 3))
            server = start_server(path, port)
        wait_for_server(port)
        proxy.cuts = proxy.refuses = proxy.delays_s = 0.0

    try:
        wait_for_server(port)
        folder = tmp_path / "run"
        kill_until_it_ends(folder, uri, dice, pause_s=0.05, meanwhile=disturb)
        check_whole(folder, f"http://127.0.0.1:{port}")
    finally:
        proxy.close()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 150))
def test_the_trainer_the_server_and_the_network(
    empty_database: Path, tmp_path: Path, seed: int
) -> None:
    check_with_server(empty_database, tmp_path, seed)
