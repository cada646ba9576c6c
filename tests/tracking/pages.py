"""Renders MLflow's pages with raylit's runs, to look at: python -m tests.tracking.pages FOLDER.

It fits twice, serves the store, and writes a PNG of each page with Debian's chromium, headless.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import raylit as pl
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow import store
from raylit.testing import TinyModel
from tests.loggers.mlflow_store import free_port, start_server, wait_for_server

SIZE = "1600,1200"
RENDERS_S = 300
EPOCH_S = 4.0


class Shown(TinyModel):
    """Logs an image and a table beside metrics, and takes time for the machine to be measured."""

    def on_train_epoch_end(self) -> None:
        """Wait."""
        time.sleep(EPOCH_S)

    def on_validation_epoch_end(self) -> None:
        """Log them."""
        self.log_image("noise", torch.rand(3, 32, 32))
        self.log_table("largest", {"name": ["a", "b"], "error": [0.5, 0.25]})


def fit(folder: Path, name: str, lr: float) -> MLFlowLogger:
    """Fit, and return the logger."""
    logger = MLFlowLogger("pages", name, save_dir=folder, log_model=True)
    trainer = pl.Trainer(
        max_epochs=4,
        gradient_clip_val=lr,
        logger=logger,
        default_root_dir=folder,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Shown())
    return logger


def render(url: str, file: Path) -> None:
    """Write what a browser shows at an address, once its scripts have come to rest."""
    with tempfile.TemporaryDirectory() as profile:
        command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu"]
        command += ["--hide-scrollbars", f"--window-size={SIZE}", f"--user-data-dir={profile}"]
        command += ["--virtual-time-budget=90000", f"--screenshot={file}", url]
        subprocess.run(command, timeout=RENDERS_S, check=True, capture_output=True)


def main(folder: Path) -> None:
    """Fit, serve and render."""
    if shutil.which("chromium") is None:
        raise FileNotFoundError("There is no chromium. Install it: apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    loggers = [fit(folder, name, lr) for name, lr in (("careful", 0.1), ("bold", 1.0))]
    ids = [str(logger.run_id) for logger in loggers]
    experiment = str(loggers[0].experiment_id)
    port = free_port()
    server = start_server(folder / "mlflow.db", port)
    try:
        wait_for_server(port)
        address = f"http://127.0.0.1:{port}"
        run = store.page_of_run(experiment, ids[0])
        pages = {
            "run": run,
            "metrics": run.replace(store.ML, f"/model-metrics{store.ML}"),
            "system": run.replace(store.ML, f"/system-metrics{store.ML}"),
            "models": f"/#/experiments/{experiment}/models{store.ML}",
            "experiment": f"/#/experiments/{experiment}/runs{store.ML}",
            "comparison": store.page_of_runs(experiment, ids),
        }
        for name, page in pages.items():
            render(address + page, folder / f"{name}.png")
            print(folder / f"{name}.png", flush=True)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
