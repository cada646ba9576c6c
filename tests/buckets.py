"""Servers of buckets on this machine, as processes of their own.

One that speaks S3, one that speaks Google Cloud Storage.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.deadlines import stretched


def free_port() -> int:
    """Return a port that nobody listens on, and that the system gives to nobody."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)):
                return port


S3_PORT = free_port()
# Set before a Ray cluster is started: its workers have the environment in which that was.
S3_ENVIRONMENT = {
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def s3_server() -> Iterator[None]:
    """Within, an S3 server listens on `S3_PORT`."""
    with _serving(
        S3_PORT, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(S3_PORT)
    ):
        yield


@contextmanager
def gcs_server(bucket: str) -> Iterator[str]:
    """Within, a Google Cloud Storage server with one bucket listens at the address given."""
    port = free_port()
    program = shutil.which(
        "gcp-storage-emulator",
        path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    assert program is not None
    with _serving(
        port,
        program,
        "start",
        "--host=127.0.0.1",
        f"--port={port}",
        "--in-memory",
        f"--default-bucket={bucket}",
    ):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _serving(port: int, *command: str) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + stretched(60)
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (
                f"{command} does not listen"
            )
            with socket.socket() as one:
                if not one.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()
