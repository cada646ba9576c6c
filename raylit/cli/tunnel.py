"""The way to the dashboard of a cluster that `ray up` has made, which listens on its head alone."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from raylit.cli.children import end, ended_by_signals
from raylit.errors import ConfigError
from raylit.runtime.messages import info

LIMIT_S = 120.0  # for the cloud to be asked where the head is, and ssh
MOST_LINES = 5


@contextmanager
def to_head(cluster_file: str) -> Iterator[str]:
    """Context in which the dashboard of a cluster is reached at the address that is given.

    Args:
        cluster_file: the file of `ray up`.

    Raises:
        ConfigError: `ray dashboard` does not reach it.
    """
    port = _free_port()
    info(f"Opening a tunnel to the cluster: ray dashboard {cluster_file} --port {port}")
    command = [sys.executable, "-m", "ray.scripts.scripts", "dashboard", cluster_file]
    with ended_by_signals(), tempfile.TemporaryFile("w+") as said:
        # a session of its own: Ctrl-C may mean to stop the job, which goes through the tunnel
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + LIMIT_S
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    lines = [line.rstrip() for line in said if line.strip()][-MOST_LINES:]
                    raise ConfigError(
                        f"--on {cluster_file}: `ray dashboard` does not reach the head of this"
                        " cluster. Is it up (ray up)? Ray says:\n" + "\n".join(lines)
                    )
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}"
        finally:
            end(process)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    """Tell whether the tunnel stands: ssh listens at its beginning."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
