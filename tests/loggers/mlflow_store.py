"""Reading an MLflow store back, and things to put into it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import torch

from raylit.callbacks import ModelCheckpoint
from raylit.loggers import MLFlowLogger
from tests.deadlines import stretched
from tests.lazy import mlflow


def opened(logger: MLFlowLogger, tmp_path: Path, **tags: str) -> MLFlowLogger:
    logger.open(default_root_dir=str(tmp_path), tags=tags)
    return logger


def run_of(logger: Any) -> mlflow.entities.Run:
    run: mlflow.entities.Run = logger.experiment.get_run(logger.run_id)
    return run


def history(logger: Any, key: str) -> list[tuple[int, float]]:
    return [
        (metric.step, metric.value)
        for metric in logger.experiment.get_metric_history(logger.run_id, key)
    ]


def artifacts(logger: Any, path: str | None = None) -> list[str]:
    found: list[str] = []
    for item in logger.experiment.list_artifacts(logger.run_id, path):
        found += artifacts(logger, item.path) if item.is_dir else [item.path]
    return sorted(found)


class ManualCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that is told what to write, without a fit."""

    def __init__(self, folder: Path, save_top_k: int = 1, monitor: str | None = "val_loss") -> None:
        super().__init__(folder, monitor=monitor, save_top_k=save_top_k)
        self.folder = folder
        folder.mkdir(parents=True)

    def write(self, name: str, score: float, keep: int = 1) -> None:
        """Write a checkpoint of this score, and remove the worst where there are more than kept."""
        path = str(self.folder / name)
        Path(path).write_text(f"weights {score}")
        self.current_score = self.best_k_models[path] = torch.tensor(score, dtype=torch.float64)
        while len(self.best_k_models) > keep:
            worst = max(self.best_k_models, key=self.best_k_models.__getitem__)
            del self.best_k_models[worst]
            Path(worst).unlink()
        self.best_model_path = min(self.best_k_models, key=self.best_k_models.__getitem__)
        self.best_model_score = self.best_k_models[self.best_model_path]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def start_server(database: Path, port: int) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    env = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return subprocess.Popen(
        command,
        cwd=database.parent,
        env=env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_server(port: int) -> None:
    deadline = time.monotonic() + stretched(60)
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the MLflow server did not start")
