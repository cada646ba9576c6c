"""That a process group ends with its threads, however its ranks met."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deadlines import stretched

RANK = """\
import os, sys
import torch
import raylit as pl
from raylit.parallel import meeting
from raylit.testing import BoringModel

quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
kept = pl.Trainer(  # by the script until Python has ended
    max_steps=2, strategy="ddp", accelerator="cpu", enable_model_summary=False, **quiet
)


def threads():
    names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)


way, place = sys.argv[1:]
if way == "file":
    rank = int(os.environ.pop("RANK"))
    with meeting.joined(place, rank, 2, torch.device("cpu"), None, 60.0):
        kept.fit(BoringModel())
        print(threads())
else:
    kept.fit(BoringModel())
    print(threads())
    meeting.leave_group()  # as at its exit
print(threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("way", ["file", "torchrun"])
def test_no_thread_of_the_group_outlives_it(way: str, tmp_path: Path) -> None:
    """Also if something of the fit does; a thread that lets go of a tensor then aborts Python."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, os.getcwd()]))}
    if way == "torchrun":
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
        env |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK, way, str(tmp_path / "meeting")],
            env=env | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    try:
        said = [process.communicate(timeout=stretched(120))[0].split() for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0]
    for while_it_was, after in said:
        assert int(while_it_was) > 0
        assert int(after) == 0
