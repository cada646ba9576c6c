"""Which ports are open: none for a fit in this process, loopback for what is started, or it is said."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest

import raylit as pl
from raylit.cli import ui
from raylit.errors import ConfigError
from raylit.testing import BoringDataModule, BoringModel
from tests.cli.test_ui import free_port
from tests.deadlines import stretched


def listening(process: psutil.Process) -> set[str]:
    """The addresses on which a process and its children listen."""
    every = [process, *process.children(recursive=True)]
    return {
        one.laddr.ip
        for some in every
        for one in some.net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    }


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
