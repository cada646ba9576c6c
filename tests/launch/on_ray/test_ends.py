"""How fits on Ray workers end that others end.

Others are `ray job stop`, Ray's memory monitor, processes of Ray's own that die.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.buckets import free_port
from tests.deadlines import stretched

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[3]
RAY = (
    str(Path(sys.executable).parent / "ray")
    if (Path(sys.executable).parent / "ray").exists()
    else "ray"
)

SCRIPT = '''
import os, sys, threading, time
import psutil
import torch
import raylit as pl
from raylit.testing import TinyModel

folder, epochs, max_failures, kills = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]

class Seen(TinyModel):
    """Writes down its batches; before the fifth rank 1 takes all memory, once, if it is to."""

    def training_step(self, batch, batch_idx):
        number = self.trainer.progress.total_batches
        with open(f"{folder}/seen-{self.global_rank}", "a") as file:
            file.write(f"{number}\\\\n")
        if (
            kills == "memory" and number == 5 and self.global_rank == 1
            and not os.path.exists(f"{folder}/ate")
        ):
            open(f"{folder}/ate", "w").close()
            self.eaten = [torch.ones(50_000_000) for _ in range(18)]
            time.sleep(30)
        time.sleep(0.1)
        return super().training_step(batch, batch_idx)

def kill():
    while not os.path.exists(f"{folder}/seen-0"):
        time.sleep(0.1)
    for process in psutil.Process().children(recursive=True):
        if any(kills in part for part in process.cmdline()):
            process.kill()

if kills == "memory":
    memory = psutil.virtual_memory()
    used = memory.total - memory.available
    os.environ |= {
        "RAY_memory_usage_threshold": f"{(used + 3e9) / memory.total:.4f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
elif kills:
    threading.Thread(target=kill, daemon=True).start()
pl.seed_everything(1)
pl.Trainer(
    num_workers=2, max_epochs=epochs, max_failures=max_failures, default_root_dir=folder,
    accelerator="cpu", enable_progress_bar=False,
    logger=pl.MLFlowLogger("ends", tracking_uri=f"sqlite:///{folder}/mlflow.db"),
    enable_model_summary=False,
    callbacks=[pl.callbacks.RecoveryCheckpoint(every_n_steps=1, every_s=None)],
).fit(Seen(), ckpt_path="last")
'''.replace("\\\\n", "\\n")


SWEEP = """
import sys, time
import raylit as pl
from raylit.testing import TinyModel

folder = sys.argv[1]

class Slow(TinyModel):
    def __init__(self, lr):
        super().__init__()

    def training_step(self, batch, batch_idx):
        with open(f"{folder}/seen-0", "a") as file:
            file.write("1 ")
        time.sleep(0.1)
        return super().training_step(batch, batch_idx)

logger = pl.MLFlowLogger("ends", tracking_uri=f"sqlite:///{folder}/mlflow.db")
trainer = pl.Trainer(
    max_epochs=1000, default_root_dir=folder, accelerator="cpu", enable_progress_bar=False,
    logger=logger, enable_model_summary=False,
)
pl.Tuner(trainer).sweep(
    Slow, space={"model.lr": {"grid": [0.1, 0.2]}}, metric="val_loss", search="grid"
)
"""


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return kept | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", **more}


def seen(folder: Path, rank: int = 0) -> list[int]:
    path = folder / f"seen-{rank}"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def statuses(folder: Path) -> list[str]:
    with sqlite3.connect(folder / "mlflow.db") as store:
        return [status for (status,) in store.execute("select status from runs")]


def wait_for(
    what: Any, process: subprocess.Popen[Any] | None = None, timeout_s: float = 120
) -> None:
    deadline = time.monotonic() + stretched(timeout_s)
    while not what():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.2)


# ---- `ray job stop` ----


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head node with a dashboard, as `ray start` makes it.

    Gives the environment in which `ray job` finds it.
    """
    mode = "token" if Path("~/.ray/auth_token").expanduser().exists() else "disabled"
    port, dashboard, agent, client = (str(free_port()) for _ in range(4))
    env = environment(RAY_AUTH_MODE=mode, RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{dashboard}")
    ports = [
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
    ]
    where = f"/tmp/rl{port}"  # short: sockets lie in it
    started = [
        RAY,
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        f"--temp-dir={where}",
        "--object-store-memory=100000000",
        *ports,
    ]
    process = subprocess.Popen(
        started, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield env
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()
        subprocess.run(["rm", "-rf", where], check=True)


def ray_job(env: dict[str, str], *command: str) -> str:
    done = subprocess.run(
        [RAY, "job", *command], env=env, capture_output=True, text=True, timeout=stretched(120)
    )
    return done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.timeout(stretched(150))
def test_a_job_that_is_stopped_is_saved_and_goes_on_at_the_next_batch(
    head: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(SCRIPT)
    command = ["--", sys.executable, "-W", "ignore", str(tmp_path / "train.py"), str(tmp_path)]
    wait_for(
        lambda: (
            "submitted"
            in ray_job(
                head, "submit", "--submission-id=first", "--no-wait", *command, "1000", "0", ""
            )
        )
    )
    wait_for(lambda: len(seen(tmp_path)) > 5)
    ray_job(head, "stop", "first")
    assert statuses(tmp_path) == ["KILLED"]
    before = [seen(tmp_path, rank) for rank in range(2)]
    (saved,) = tmp_path.glob(f"mlruns/*/*/checkpoints/recovery/batch={before[0][-1]}-*.ckpt")
    assert before[0] == before[1] == list(range(1, len(before[0]) + 1))
    epochs = len(before[0]) // 2 + 2  # of two batches
    log = ray_job(head, "submit", *command, str(epochs), "0", "")
    assert f"Restoring states from the checkpoint path at {saved}" in log and "succeeded" in log, (
        log
    )
    assert [seen(tmp_path, rank) for rank in range(2)] == [list(range(1, 2 * epochs + 1))] * 2
    assert statuses(tmp_path) == ["FINISHED"], "one run"


@pytest.mark.long
@pytest.mark.timeout(stretched(150))
def test_a_sweep_that_is_stopped_leaves_no_run_running(
    head: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "tune.py").write_text(SWEEP)
    command = ["--", sys.executable, "-W", "ignore", str(tmp_path / "tune.py"), str(tmp_path)]
    wait_for(
        lambda: (
            "submitted" in ray_job(head, "submit", "--submission-id=sweep", "--no-wait", *command)
        )
    )
    wait_for(lambda: len(seen(tmp_path)) > 10)
    ray_job(head, "stop", "sweep")
    assert statuses(tmp_path) == ["KILLED"] * 3, "the sweep and two trials"
    number = len(seen(tmp_path))
    time.sleep(3)
    assert len(seen(tmp_path)) == number, "the trials have ended"


# ---- memory, and processes of Ray's own ----


def fit(folder: Path, max_failures: int, kills: str) -> tuple[int, str]:
    """Fit in a process of its own with a Ray cluster of its own.

    Returns its exit code and what it said.
    """
    (folder / "train.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(folder / "train.py"),
        str(folder),
        "4",
        str(max_failures),
        kills,
    ]
    done = subprocess.run(
        command,
        env=environment(),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=stretched(250),
    )
    return done.returncode, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("max_failures", [1, 0])
def test_a_worker_that_runs_out_of_memory(tmp_path: Path, max_failures: int) -> None:
    code, said = fit(tmp_path, max_failures, "memory")
    assert said.count("Ray dashboard: ") == 1
    if max_failures:
        assert code == 0, said
        (restart,) = (line for line in said.splitlines() if line.startswith("Restart"))
        # Of a worker, or whatever else Ray chose to kill
        assert restart.startswith("Restart 1") and "running low on memory" in restart
        assert [seen(tmp_path, rank) for rank in range(2)] == [[1, 2, 3, 4, 5, 5, 6, 7, 8]] * 2, (
            "what was not saved is done again"
        )
        assert statuses(tmp_path) == ["FINISHED"]
    else:
        assert code == 1 and "raylit.errors.LaunchError" in said, said
        assert "running low on memory" in said and "smaller batches" in said.splitlines()[-1]
        assert statuses(tmp_path) == ["FAILED"]


@pytest.mark.long
@pytest.mark.parametrize("max_failures", [1, 0])
def test_the_process_that_watches_the_workers_dies(tmp_path: Path, max_failures: int) -> None:
    code, said = fit(tmp_path, max_failures, "TrainController")
    if max_failures:
        assert (
            code == 0
            and "Restart 1, from the newest checkpoint: the process that watches the workers died"
            in said
        ), said
        assert sorted(set(seen(tmp_path))) == list(range(1, 9)) and statuses(tmp_path) == [
            "FINISHED"
        ]
    else:
        assert (
            code == 1
            and "The process in which Ray Train watches the workers has died"
            in said.splitlines()[-1]
        ), said
        assert statuses(tmp_path) == ["FAILED"]


@pytest.mark.long
def test_the_process_that_brings_progress_dies(tmp_path: Path) -> None:
    code, said = fit(tmp_path, 0, "Mailbox")
    assert code == 0 and seen(tmp_path) == list(range(1, 9)), said
    assert statuses(tmp_path) == ["FINISHED"]
