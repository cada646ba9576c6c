"""What several folders of tests share.

One Ray cluster for the whole run, as raylit itself starts it, and one S3 server.
"""

from __future__ import annotations

import functools
import gc
import os
import re
import signal
import sys
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import S3_ENVIRONMENT, s3_server
from tests.deadlines import stretched

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.pop("RAY_ADDRESS", None)
# A hang must end with a stack, not with the patience of CI; pytest-timeout reads this.
os.environ.setdefault("PYTEST_TIMEOUT", f"{stretched(150):.0f}")
os.environ.update(S3_ENVIRONMENT)
# The emulator of Google's storage speaks no gRPC, for which gcsfs would wait a minute each time.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
USES_RAY = re.compile(r"\bray_cluster\b")  # the fixture
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As in a shell's background job, and so it would be in all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n 2` a process takes whole files, and one of them all that use Ray.

    So there is one Ray cluster, and what a module's tests share is made once. Groups of
    pytest-xdist 3.8 cannot say so: pytest 9.2 does not show it the names that it changes.
    """
    from xdist.scheduler import LoadFileScheduling

    class ByFileAndRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if uses_ray(config.rootpath / file) else file

    config.option.loadscopereorder = False  # the order is that of the collection
    return ByFileAndRay(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that use Ray come first, then those with few tests, which take long for each.

    So that both processes of `-n 2` have something to do until the end.
    """
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (not uses_ray(item.path), sizes[item.path], item.path))


@functools.cache
def uses_ray(file: Path) -> bool:
    return USES_RAY.search(file.read_text()) is not None


@pytest.fixture(scope="module", autouse=True)
def _collects_own_garbage() -> Iterator[None]:
    """Python's garbage collection looks at what this module's tests make.

    That of all before takes long, and some code collects at every step.
    """
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _environment_as_before() -> Iterator[None]:
    """What a test tells MLflow, which hands it on through the environment, ends with it."""
    before = dict(os.environ)
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(autouse=True)
def _warned_of_nothing_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is said once in a process is said anew to each test."""
    monkeypatch.setattr("raylit.runtime.messages.warned", set())


@pytest.fixture(autouse=True)
def _handlers_of_lightning_end_with_their_test() -> Iterator[None]:
    """A fit of Lightning's that SIGTERM ended leaves its handler, which calls the one before it.

    That is none of the handlers which raylit knows, so in a later test it counts as the user's.
    """
    yield
    handler: Any = signal.getsignal(signal.SIGTERM)
    while type(handler).__module__.startswith("lightning."):
        _, *before = handler.signal_handlers
        handler = before[0] if before else signal.SIG_DFL
        signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """A Ray cluster of this machine with four logical CPUs, and this process connected to it.

    Gives its address.
    """
    import ray

    from raylit.launch.on_ray.cluster import connect

    connect(num_cpus=4)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def kept_workers(ray_cluster: str) -> Iterator[None]:
    """Fits of a module's tests share their Ray workers, which start once."""
    import raylit

    with raylit.keep_workers():
        yield


@pytest.fixture(scope="session")
def _s3() -> Iterator[None]:
    pytest.importorskip("s3fs", reason="is in no environment of oldest versions")
    with s3_server():
        yield


@pytest.fixture
def bucket(_s3: None) -> str:
    """The URL of a new, empty S3 bucket."""
    import fsspec

    name = f"b{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"
