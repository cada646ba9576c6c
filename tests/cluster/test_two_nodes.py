"""A fit over two nodes, of which one dies, is the fit in which none died.

The nodes are network namespaces with their own addresses.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.cluster import train
from tests.cluster.nodes import Nodes, why_not
from tests.deadlines import stretched
from tests.lazy import mlflow
from tests.ranks import run_on_two_ranks

pytestmark = pytest.mark.ray
NUM_BATCHES = train.NUM_SAMPLES // train.BATCH_SIZE // 2  # of an epoch, on each rank


@pytest.fixture(scope="module")
def unshared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the second node does not see."""
    return tmp_path_factory.mktemp("unshared")


@pytest.fixture(scope="module")
def nodes(unshared: Path) -> Iterator[Nodes]:
    """Two nodes with one CPU each."""
    reason = why_not()
    assert reason is None, (
        f"This test makes network namespaces, which cannot be had here: {reason}. Leave it out with"
        " -m 'not ray'."
    )
    with Nodes(2, unshared=unshared) as made:
        made.start(0)
        made.start(1)
        yield made


def seen(folder: Path, rank: int) -> list[list[str]]:
    """The complete lines that a rank wrote: epoch, batch, time, samples."""
    path = folder / f"seen-{rank}"
    return (
        [line.split() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if path.exists()
        else []
    )


def wait_for(folder: Path, epoch: int, batch: int, process: subprocess.Popen[str]) -> None:
    """Wait until both ranks have begun a batch."""
    deadline = time.monotonic() + stretched(120)
    while not all(
        any((int(line[0]), int(line[1])) >= (epoch, batch) for line in seen(folder, rank)[-1:])
        for rank in (0, 1)
    ):
        assert process.poll() is None, (folder / "errors").read_text()
        assert time.monotonic() < deadline, (folder / "errors").read_text()
        time.sleep(0.05)


@contextmanager
def mlflow_server(nodes: Nodes, folder: Path) -> Iterator[str]:
    """Within, an MLflow server runs on the head, where both nodes reach it; gives its address.

    It keeps the runs in FOLDER/mlflow.db.
    """
    folder.mkdir()
    address = f"http://{nodes.addresses[0]}:5000"
    where = (
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
        "--workers",
        "1",
    )
    command = (
        "-m",
        "mlflow",
        "server",
        "--host",
        nodes.addresses[0],
        "--port",
        "5000",
        "--allowed-hosts",
        f"{nodes.addresses[0]}:5000",
        *where,
    )
    with (folder / "server").open("w") as log:
        server = nodes.popen(
            0, sys.executable, *command, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    try:
        ask = nodes.command(
            1,
            sys.executable,
            "-c",
            f"import urllib.request as r; r.urlopen('{address}/health', timeout=2)",
        )
        deadline = time.monotonic() + stretched(60)
        while subprocess.run(ask, capture_output=True).returncode:
            assert time.monotonic() < deadline and server.poll() is None, (
                folder / "server"
            ).read_text()
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # its workers too
        server.wait()


def start(nodes: Nodes, folder: Path, epochs: int, tracking_uri: str) -> subprocess.Popen[str]:
    """Start the fit on the head."""
    command = (sys.executable, "-m", "tests.cluster.train", str(folder), str(epochs))
    env = {"RAY_ADDRESS": nodes.address, "MLFLOW_TRACKING_URI": tracking_uri}
    with (folder / "out").open("a") as out, (folder / "errors").open("a") as errors:
        return nodes.popen(
            0,
            *command,
            cwd=str(train.__file__).rpartition("/")[0],
            env=env,
            stdout=out,
            stderr=errors,
        )


@contextmanager
def ends_well(nodes: Nodes, folder: Path, epochs: int) -> Iterator[subprocess.Popen[str]]:
    """Start the fit, with its runs on an MLflow server on the head.

    After what is done to the nodes within, it comes to its end.
    """
    with mlflow_server(nodes, folder) as address:
        process = start(nodes, folder, epochs, address)
        try:
            yield process
            assert process.wait(120) == 0, (folder / "errors").read_text()
        finally:
            process.kill()


def undisturbed(folder: str) -> dict[str, torch.Tensor]:
    """The same fit on two ranks without Ray."""
    return train.fit(folder, epochs=train.EPOCHS)


def undisturbed_short(folder: str) -> dict[str, torch.Tensor]:
    """Likewise."""
    return train.fit(folder, epochs=2)


def check(folder: Path, expected: dict[str, torch.Tensor], epochs: int) -> None:
    """Every sample once per epoch, the same weights, every step once in MLflow."""
    found = torch.load(folder / "end.pt", weights_only=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    for epoch in range(epochs):
        samples: list[str] = []
        for rank in (0, 1):
            batches: dict[int, list[str]] = {}
            for line in seen(folder, rank):
                if int(line[0]) == epoch:
                    # Done again, it is the same
                    assert batches.setdefault(int(line[1]), line[3:]) == line[3:]
            samples += [sample for batch in batches.values() for sample in batch]
        assert sorted(map(int, samples)) == list(range(train.NUM_SAMPLES))
    client = mlflow.tracking.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("two nodes").experiment_id])
    assert run.info.status == "FINISHED"
    assert [
        metric.step for metric in client.get_metric_history(run.info.run_id, "loss_step")
    ] == list(range(epochs * NUM_BATCHES))
    assert [metric.value for metric in client.get_metric_history(run.info.run_id, "epoch")][
        -1
    ] == epochs - 1


@pytest.mark.long  # its short sibling is in test_elastic.py
def test_a_node_dies_and_comes_back(nodes: Nodes, tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    with ends_well(nodes, folder, 2) as process:
        (tmp_path / "plain").mkdir()
        expected = run_on_two_ranks(undisturbed_short, tmp_path / "plain")[0]
        wait_for(folder, 1, NUM_BATCHES // 2, process)
        nodes.kill(1)
        killed = time.time()
        nodes.start(1)
    check(folder, expected, 2)
    text = (folder / "errors").read_text()
    assert "Restart 1 of 3, from the newest checkpoint: rank " in text
    for address in nodes.addresses:
        assert f"Node {address} (" in text
    again = min(float(line[2]) for line in seen(folder, 0) if float(line[2]) > killed + 1)
    print(f"from the death of a node to the next step: {again - killed:.1f} s")


@pytest.mark.long
def test_a_node_dies_again_and_again(nodes: Nodes, tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    (tmp_path / "plain").mkdir()
    expected = run_on_two_ranks(undisturbed, tmp_path / "plain")[0]
    with ends_well(nodes, folder, train.EPOCHS) as process:
        for epoch, batch in ((0, 2), (1, 0), (2, NUM_BATCHES - 2)):
            wait_for(folder, epoch, batch, process)
            nodes.kill(1)
            nodes.start(1)
    check(folder, expected, train.EPOCHS)


@pytest.mark.long
def test_the_driver_dies_and_another_goes_on(nodes: Nodes, tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    (tmp_path / "plain").mkdir()
    expected = run_on_two_ranks(undisturbed, tmp_path / "plain")[0]
    with mlflow_server(nodes, folder) as address:
        for epoch, batch in ((0, NUM_BATCHES - 2), (1, 5), (train.EPOCHS, 0)):
            process = start(nodes, folder, train.EPOCHS, address)
            try:
                if epoch < train.EPOCHS:
                    wait_for(folder, epoch, batch, process)
                else:
                    assert process.wait(120) == 0, (folder / "errors").read_text()
            finally:
                process.kill()
                process.wait()
    check(folder, expected, train.EPOCHS)


@pytest.mark.long
def test_a_notice_costs_no_batch(nodes: Nodes, tmp_path: Path) -> None:
    """A node that is to be taken away is left before the deadline.

    The fit goes on at the next batch on the one that comes.
    """
    folder = tmp_path / "ray"
    (tmp_path / "plain").mkdir()
    expected = run_on_two_ranks(undisturbed, tmp_path / "plain")[0]
    with ends_well(nodes, folder, train.EPOCHS) as process:
        wait_for(folder, 0, 1, process)
        nodes.drain((folder / f"node-{nodes.addresses[1]}").read_text(), deadline_s=60)
        deadline = time.monotonic() + stretched(60)
        while "because of a notice" not in (folder / "errors").read_text():
            assert time.monotonic() < deadline and process.poll() is None, (
                folder / "errors"
            ).read_text()
            time.sleep(0.1)
        nodes.kill(1)
        time.sleep(8)  # the driver waits for a node, and says so
        nodes.start(1)
    check(folder, expected, train.EPOCHS)
    for rank in (0, 1):
        batches = [(line[0], line[1]) for line in seen(folder, rank)]
        # None was done twice
        assert len(batches) == len(set(batches)) == train.EPOCHS * NUM_BATCHES
    assert "Waiting for the Ray cluster since" in (folder / "errors").read_text()


SCRIPT = """
import os
import sys

import raylit as pl
from raylit.errors import ConfigError
from lib.parts import Net

model = Net()
try:
    pl.Trainer(num_workers=2, max_epochs=1, default_root_dir=".", logger=False).fit(model)
except ConfigError as error:
    print("refused:", error)
os.environ["WANTED"] = "1"
pl.Trainer(num_workers=2, max_epochs=1, default_root_dir=sys.argv[1], logger=False).fit(model)
print("trained", model.where)
"""

PARTS = """
from raylit.testing.modules import TinyModel


class Net(TinyModel):
    where = "nowhere"

    def on_train_start(self):
        from lib import more  # found on a node that never saw this folder

        assert more.ANSWER == 42

    def on_fit_end(self):
        self.where = "everywhere"
"""


@pytest.mark.long
def test_code_travels_and_folders_must_be_shared(
    nodes: Nodes, unshared: Path, tmp_path: Path
) -> None:
    (unshared / "lib").mkdir()
    (unshared / "train.py").write_text(SCRIPT)
    (unshared / "lib" / "parts.py").write_text(PARTS)
    (unshared / "lib" / "more.py").write_text("ANSWER = 42")
    env = {"RAY_ADDRESS": nodes.address}
    process = nodes.popen(
        0,
        sys.executable,
        "train.py",
        str(tmp_path),
        cwd=unshared,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, errors = process.communicate(timeout=stretched(120))
    assert process.returncode == 0, out + errors
    assert f"refused: The run would write to {unshared}" in out
    assert nodes.addresses[1] in out
    assert "trained" in out
    assert f"Sending {unshared} to the nodes" in errors
