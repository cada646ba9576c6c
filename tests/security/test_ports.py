"""Open ports: none for a fit in this process, loopback for what is started, or it is said."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

import raylit as pl
from raylit.cli import ui
from raylit.errors import ConfigError
from raylit.launch.on_ray.address import is_on_loopback
from raylit.parallel.rendezvous import loopback_store
from raylit.testing import BoringDataModule, BoringModel
from tests.cli.test_ui import free_port
from tests.deadlines import stretched


def listening(process: psutil.Process) -> set[str]:
    """The addresses on which a process and its children listen."""
    found: set[str] = set()
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
            connections = one.net_connections("inet")
            found |= {some.laddr.ip for some in connections if some.status == psutil.CONN_LISTEN}
    return found


def test_a_fit_in_this_process_opens_none(tmp_path: Path) -> None:
    before = listening(psutil.Process())
    seen: list[set[str]] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            seen.append(listening(psutil.Process()) - before)

    trainer = pl.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        callbacks=[Look()],
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(BoringModel(), datamodule=BoringDataModule())
    assert seen == [set()]


class Reported(pl.Callback):
    """Logs how many addresses a cluster's processes listen on, and how many others can reach."""

    def __init__(self, driver: int) -> None:
        self.driver = driver

    def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        found = listening(psutil.Process(self.driver))
        module.log("num_listening", float(len(found)))
        module.log("num_open", float(len({one for one in found if not is_loopback(one)})))


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


@pytest.mark.ray
def test_a_cluster_that_raylit_starts_and_a_fit_on_it_are_for_this_machine_alone(
    ray_cluster: str, tmp_path: Path
) -> None:
    """Ray's own servers, the workers', the ranks' meeting place and gloo's connections."""
    trainer = pl.Trainer(
        max_steps=1,
        num_workers=2,
        accelerator="cpu",
        logger=False,
        callbacks=[Reported(os.getpid())],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    metrics = trainer.fit(BoringModel(), datamodule=BoringDataModule()).metrics
    assert metrics["num_listening"] > 0
    assert metrics["num_open"] == 0, listening(psutil.Process())
    assert all(is_loopback(one) for one in listening(psutil.Process()))
    assert is_on_loopback(ray_cluster)


def test_a_cluster_that_listens_for_others_is_joined_as_ray_does() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        threading.Thread(target=settings, args=(listener,), daemon=True).start()
        port = listener.getsockname()[1]
        assert not is_on_loopback(f"127.0.0.1:{port}")
    assert not is_on_loopback("10.1.2.3:6379")


def settings(listener: socket.socket) -> None:
    """Answer as Ray's servers do: with the first frame of HTTP/2."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(100)
        connection.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize(("address", "own"), [("127.0.0.1", True), ("10.1.2.3", False)])
def test_ranks_of_one_machine_meet_where_no_other_is(
    address: str, own: bool, monkeypatch: Any
) -> None:
    for name, value in {"MASTER_ADDR": address, "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    before = listening(psutil.Process())
    made = loopback_store(timedelta(seconds=5))
    assert bool(made) is own
    assert listening(psutil.Process()) - before <= {"127.0.0.1"}
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert loopback_store(timedelta(seconds=5)) == {}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "lab.example.com"])
def test_a_page_without_login_for_others_is_said(host: str) -> None:
    with pytest.warns(UserWarning, match=r"there is no login[\s\S]*raylit ui --auth"):
        ui.warn_if_open(host, 5000)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_for_this_machine_alone_nothing_is_said(host: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ui.warn_if_open(host, 5000)


def test_what_a_login_needs_is_for_this_user_alone(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "short")
    with pytest.raises(ConfigError, match="MLflow wants 12"):
        ui.login()
    monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD")
    first = ui.login()
    assert ui.login() == first and len(first["MLFLOW_AUTH_ADMIN_PASSWORD"]) >= 24
    folder = tmp_path / "raylit-ui"
    assert folder.stat().st_mode & 0o077 == 0
    for name in ("admin-password", "session-key"):
        assert (folder / name).stat().st_mode & 0o077 == 0


@pytest.mark.long
def test_a_page_with_login(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").search_experiments()
    port = free_port()
    child = subprocess.Popen(
        [sys.executable, "-m", "raylit", "ui", "--auth", "--port", str(port)],
        cwd=tmp_path,
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        said = ""
        while "Runs and sweeps" not in said:
            line = child.stdout.readline()
            assert line, said
            said += line
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=5"
        password = (tmp_path / "raylit-ui" / "admin-password").read_text()
        assert password not in said
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(url, timeout=stretched(30))
        login = base64.b64encode(f"admin:{password}".encode()).decode()
        request = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
        with urllib.request.urlopen(request, timeout=stretched(30)) as answer:
            assert answer.status == 200
        assert listening(psutil.Process(child.pid)) == {"127.0.0.1"}
        every = psutil.Process(child.pid).children(recursive=True)
        assert not any(password in " ".join(one.cmdline()) for one in every)
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=stretched(60)) == 143
