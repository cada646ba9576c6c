"""Worker processes of loaders end with the process that reads them, whenever it is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from torch.utils.data import DataLoader

from raylit.data.worker_processes import begin_reading
from tests.deadlines import stretched

READER = """
import os, signal, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from raylit.data.worker_processes import begin_reading

folder, how = Path(sys.argv[1]), sys.argv[2]

def note(worker):
    (folder / str(os.getpid())).touch()
    if how == "while they begin":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(0.5)  # until it is dead, before PyTorch looks for it

items = begin_reading(DataLoader(range(100), num_workers=2, worker_init_fn=note))
next(items)
os.kill(os.getpid(), signal.SIGKILL)
"""

RANK = """
import os, signal, sys, time
from torch.utils.data import DataLoader
import raylit as pl
from raylit.demos.boring_classes import BoringModel, RandomDataset

quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer = pl.Trainer(max_epochs=3, accelerator="cpu", limit_val_batches=0, **quiet)

def kill(worker):  # the loader's workers are new in each epoch
    if trainer.current_epoch == 1 and os.environ["RANK"] == "1" and worker == 0:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(0.5)  # until it is dead, before PyTorch looks for it

loader = DataLoader(RandomDataset(32, 64), batch_size=4, num_workers=2, worker_init_fn=kill)
trainer.fit(BoringModel(), loader)
"""


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + stretched(30)
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
@pytest.mark.parametrize("how", ["while they begin", "while they read"])
def test_they_end_when_it_is_killed(how: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path), how], check=False)
    assert done.returncode == -signal.SIGKILL
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert workers
    wait_for(lambda: not any(map(psutil.pid_exists, workers)))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers are not forked")
def test_a_rank_ends_when_another_is_killed_while_its_workers_begin(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    group |= {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK],
            cwd=tmp_path,
            env=os.environ | group | {"RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        _, error = ranks[0].communicate(timeout=stretched(60))
    finally:
        for one in ranks:
            one.kill()
            one.wait()
    assert ranks[1].returncode == -signal.SIGKILL
    assert ranks[0].returncode == 1 and "Connection" in error, error


def test_the_loader_is_as_it_was() -> None:
    begun: list[int] = []
    loader = DataLoader(range(4), num_workers=2, worker_init_fn=begun.append)
    assert [int(item) for item in begin_reading(loader)] == [0, 1, 2, 3]
    assert loader.worker_init_fn == begun.append
    assert [int(item) for item in begin_reading(DataLoader(range(2)))] == [0, 1]
