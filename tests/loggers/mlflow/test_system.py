"""The process that measures a machine without rank 0, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from raylit.loggers.mlflow import system
from tests.deadlines import stretched


@pytest.mark.long
def test_it_measures_from_the_begin_of_the_run_until_it_is_left(
    client: Any, uri: str, experiment: str
) -> None:
    """The steps are seconds since the run began, which go on through restarts."""
    began_ms = int(time.time() * 1000) - 1_000_000
    run_id = client.create_run(experiment, start_time=began_ms).info.run_id
    environment = {"MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "0.2"}
    process = system.start_elsewhere(uri, run_id, 3, environment)
    memory = "system/node_3/process_memory_usage_megabytes"
    try:
        deadline = time.monotonic() + stretched(20)
        while len(found := client.get_metric_history(run_id, memory)) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.1)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(stretched(10)) == 0
    finally:
        process.kill()
    for one in found:
        assert one.step == (one.timestamp - began_ms) // 1000 >= 1000
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert found[0].value == pytest.approx(resident / 1e6, rel=0.5), "of this process, not of its"
    names = {*client.get_run(run_id).data.metrics}
    assert "system/node_3/cpu_utilization_percentage" in names
    assert all(name.startswith("system/node_3/") for name in names)


def test_without_a_job_it_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", system.MODULE],
        input="",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=stretched(20),
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
