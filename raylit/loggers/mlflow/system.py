"""Measurements of a machine, taken by MLflow's own monitors, in another process than the training.

On the node of rank 0 that is the process that sends the journal; on other nodes one of its own,
which is given, on stdin, a JSON object with the URI of the store, the run and the number of the
node, and ends when stdin does. The step of a measurement is the seconds since the run began, which
go on through restarts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from raylit.loggers.mlflow.journal import Record
from raylit.loggers.mlflow.store import SYSTEM
from raylit.runtime.messages import log

if TYPE_CHECKING:
    from raylit.loggers.mlflow.store import RunStore

EVERY_S = 10.0
MOST_WAITING = 5000  # records, while the store is away
MODULE = "raylit.loggers.mlflow.system"


class SystemMonitor(threading.Thread):
    """Measures a machine from now on, and writes that into a run, until the process ends.

    Args:
        run_store: the run; used by this thread alone.
        node: number of the machine among those of the fit.
        pid: a process whose memory is measured too.
    """

    def __init__(self, run_store: RunStore, node: int, pid: int) -> None:
        super().__init__(name="raylit-system", daemon=True)
        self._store = run_store
        self._prefix = f"{SYSTEM}{node}/"
        self._pid = pid

    def run(self) -> None:
        """Measure and write."""
        import psutil

        psutil.cpu_percent()  # the first answer is about nothing
        given = os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "")
        every_s = float(given) if given.replace(".", "", 1).isdigit() else EVERY_S
        monitors = _monitors()
        waiting: list[Record] = []
        start_ms: int | None = None
        has_failed = False
        while True:
            time.sleep(min(every_s, 1.0) if start_ms is None else every_s)
            try:
                if start_ms is None:
                    start_ms = self._store.start_ms()
                now_ms = int(time.time() * 1000)
                step = max(now_ms - start_ms, 0) // 1000
                measured = _measure(monitors) | _memory(self._pid)
                waiting += (
                    Record("metric", f"{self._prefix}{name}", value, now_ms, step)
                    for name, value in measured.items()
                )
                self._store.write(waiting)
                waiting = []
                has_failed = False
            except Exception as error:
                if not has_failed:
                    log.debug(f"System metrics wait for MLflow: {error}")
                has_failed = True
                waiting = waiting[-MOST_WAITING:]


class _Monitor(Protocol):
    """A monitor of MLflow."""

    def collect_metrics(self) -> None:
        """Measure once."""

    def aggregate_metrics(self) -> dict[str, float]:
        """Return the measured values."""

    def clear_metrics(self) -> None:
        """Forget it."""


def _monitors() -> list[_Monitor]:
    """Return MLflow's monitors, those of GPUs if there are any."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    everywhere: tuple[Callable[[], _Monitor], ...] = (CPUMonitor, DiskMonitor, NetworkMonitor)
    of_gpus: tuple[Callable[[], _Monitor], ...] = (GPUMonitor, ROCMMonitor)
    found = [kind() for kind in everywhere]
    for kind in of_gpus:
        with suppress(Exception):  # each raises its own where there is no such device or package
            found.append(kind())
    return found


def _measure(monitors: list[_Monitor]) -> dict[str, float]:
    found: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        found |= monitor.aggregate_metrics()
        monitor.clear_metrics()
    return found


def _memory(pid: int) -> dict[str, float]:
    """Return the memory of a process, as MLflow writes that of a machine."""
    import psutil

    try:
        used = psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return {}  # it has ended
    return {"process_memory_usage_megabytes": used / 1e6}


def start_elsewhere(
    uri: str, run_id: str, node: int, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Measure this machine by a process of its own, until its stdin is closed."""
    root = str(Path(__file__).parents[3])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", MODULE],  # -P: no module of the user's folder
        stdin=subprocess.PIPE,
        text=True,
        env=os.environ | dict(environment) | {"PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,
    )
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        job = {"uri": uri, "run_id": run_id, "node": node, "pid": os.getpid()}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
    return process


def main() -> None:
    """Measure until stdin ends."""
    line = sys.stdin.readline()
    if not line:
        return
    from raylit.loggers.mlflow.store import RunStore, short_requests

    job = json.loads(line)
    with short_requests():
        SystemMonitor(RunStore(job["uri"], job["run_id"]), job["node"], job["pid"]).start()
        sys.stdin.read()


if __name__ == "__main__":
    main()
