"""Processes that a command starts in a session of their own, and that end with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from raylit.errors import Terminated

WAIT_S = 10.0  # after SIGTERM, and after SIGKILL


def end(child: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(timeout=WAIT_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """End this process on SIGTERM and on a closed terminal in the way that ends its children."""

    def stop(number: int, frame: object) -> None:
        raise Terminated(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
