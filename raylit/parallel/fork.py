"""Forks, as a DataLoader starts its workers, beside the threads of torch's process groups.

A thread that torch.distributed started makes a state of Python's for itself whenever it lets go of
a tensor that Python knows. Before Python 3.12 a child that is forked in that moment waits for ever,
before it has run a line, for a lock whose owner does not exist in it; the loader waits for the
child, and the other ranks wait for this one. `PyOS_AfterFork_Child` took the lock before it made it
anew; see https://github.com/python/cpython, Modules/posixmodule.c, in 3.11 and 3.12.
"""

from __future__ import annotations

import functools
import os
import sys
import time

STARTED_BY_TORCH = "pt_"  # so begin the names of its threads


@functools.cache
def make_forks_safe() -> None:
    """From now on, have each fork of this process wait until the threads of process groups rest.

    They do when nothing is under way.
    """
    if sys.version_info < (3, 12) and sys.platform == "linux":
        os.register_at_fork(before=_wait_for_rest)


def _wait_for_rest(longest_s: float = 1.0) -> None:
    """Wait until no thread of torch's runs."""
    end = time.monotonic() + longest_s
    time.sleep(0.0002)  # gives Python's lock to those that wait for it
    while _is_busy() and time.monotonic() < end:
        time.sleep(0.0002)


def _is_busy() -> bool:
    """Tell whether one runs or is about to."""
    for thread in os.scandir("/proc/self/task"):
        try:
            with open(f"{thread.path}/stat") as file:
                stat = file.read()
        except OSError:  # it has ended meanwhile
            continue
        name, _, state = stat.partition("(")[2].rpartition(") ")
        if name.startswith(STARTED_BY_TORCH) and not state.startswith("S"):
            return True
    return False
