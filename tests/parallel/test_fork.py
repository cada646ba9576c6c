from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raylit.parallel import World, fork
from tests.deadlines import stretched
from tests.ranks import run_on_two_ranks

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 12) or sys.platform != "linux", reason="only there a fork has to wait"
)


def compute(name: str, ends: threading.Event) -> None:
    """Be a thread of that name that runs without Python's lock."""
    Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
    while not ends.is_set():
        hashlib.pbkdf2_hmac("sha256", b"", b"", 400_000)


def is_seen(name: str, for_s: float) -> bool:
    ends = threading.Event()
    thread = threading.Thread(target=compute, args=(name, ends))
    thread.start()
    until = time.monotonic() + for_s
    seen = False
    while not seen and time.monotonic() < until:
        seen = fork._is_busy()
        time.sleep(0.001)
    ends.set()
    thread.join()
    return seen


def test_which_threads_are_waited_for() -> None:
    assert is_seen("pt_gloo_runloop", for_s=60)
    until = time.monotonic() + stretched(60)
    while fork._is_busy() and time.monotonic() < until:  # the thread may be on its way out
        time.sleep(0.001)
    assert not is_seen("mine", for_s=0.2)


FORKS = """
import os, sys, threading, time
sys.path.insert(0, "")
from tests.parallel.test_fork import compute, fork
fork.make_forks_safe()
fork.make_forks_safe()
ends = threading.Event()
threading.Thread(target=compute, args=("pt_gloo_runloop", ends)).start()
while not fork._is_busy():
    time.sleep(0.001)
began = time.monotonic()
child = os.fork()
if child == 0:
    os._exit(0)
print(time.monotonic() - began)
os.waitpid(child, 0)
ends.set()
"""


def test_a_fork_waits_but_not_for_ever() -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKS]
    assert (
        float(
            subprocess.run(command, check=True, capture_output=True, timeout=stretched(120)).stdout
        )
        > 0.05
    )


def forks(folder: str) -> int:
    """Fork right after collectives, as the first batch of an epoch does.

    It ends when both ranks have done it often.
    """
    world = World.join("cpu")
    for number in range(3000):
        world.all_gather_object(number)
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    return number


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_forks(tmp_path: Path) -> None:
    assert run_on_two_ranks(forks, tmp_path, timeout_s=900) == [2999, 2999]
