"""Runs a function in processes of this machine that are the ranks of a gloo group."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.deadlines import stretched


def run_on_two_ranks(
    function: Callable[[str], Any], folder: Path, timeout_s: float = 120
) -> list[Any]:
    """Call `function(str(folder))` on both ranks; see `run_on_ranks`."""
    return run_on_ranks(2, function, folder, timeout_s)


def run_on_ranks(
    number: int, function: Callable[[str], Any], folder: Path, timeout_s: float = 120
) -> list[Any]:
    """Call `function(str(folder))` on all ranks, as under torchrun, and return what they returned.

    What rank 0 returned comes first.

    Args:
        number: of ranks.
        function: at the top level of a test module.
        folder: where its files go.
        timeout_s: a rank that has not ended by then fails the test.
    """
    timeout_s = stretched(timeout_s)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    env = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "TORCHELASTIC_RUN_ID": "test",
    }
    path = os.pathsep.join(filter(None, [*sys.path, os.getcwd()]))
    script = (
        "import faulthandler, importlib, os, pickle, sys, torch\n"
        # A rank that hangs says where
        f"faulthandler.dump_traceback_later({0.8 * timeout_s}, exit=True)\n"
        "torch.set_num_threads(1)\n"
        "torch.distributed.init_process_group('gloo')\n"
        "found ="
        f" importlib.import_module({function.__module__!r}).{function.__name__}({str(folder)!r})\n"
        f"pickle.dump(found, open({str(folder)!r} + '/' + os.environ['RANK'], 'wb'))\n"
        "os._exit(0)\n"  # what is left of a group whose partner has died is of no interest
    )
    ranks = [str(rank) for rank in range(number)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script],
            env=os.environ | env | {"PYTHONPATH": path, "RANK": r, "LOCAL_RANK": r},
        )
        for r in ranks
    ]
    try:
        assert [process.wait(timeout_s) for process in processes] == [0] * number
    finally:
        for process in processes:
            process.kill()
    return [pickle.loads((folder / rank).read_bytes()) for rank in ranks]
