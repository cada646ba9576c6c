"""Deadlines of tests: they catch hangs, and nothing else may run into them.

One factor, measured when the run starts, stretches all of them. On an idle machine it is 4, since
the run itself keeps all cores busy: Ray's workers, which yield to all else, then take up to 4 times
as long as alone. With a load of 20 on two cores it is 10, where fits that take 10 s alone took 100.
"""

from __future__ import annotations

import os
import time

LEAST = 4.0
IDLE_S = 0.09  # CPU time of `_work` on the machine that the deadlines were written on
_VARIABLE = "RAYLIT_TESTS_STRETCH"  # the factor, for the processes that tests start


def _work() -> int:
    return sum(number * number % 7 for number in range(1_500_000))


def _measured() -> float:
    """Return how many times longer things take now than on an idle machine."""
    began_s = time.perf_counter()
    began_cpu_s = time.process_time()
    _work()
    cpu_s = time.process_time() - began_cpu_s
    waited = (time.perf_counter() - began_s) / cpu_s
    slower = cpu_s / IDLE_S
    queued = os.getloadavg()[0] / (os.cpu_count() or 1)
    return max(LEAST, slower * max(waited, queued))


FACTOR = float(os.environ.setdefault(_VARIABLE, f"{_measured():.2f}"))


def stretched(seconds: float) -> float:
    """Return a deadline for something that takes well under `seconds` on an idle machine."""
    return seconds * FACTOR
