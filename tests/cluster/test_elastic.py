"""A fit that loses nodes and gets others is the fit of all nodes.

Each sample once per epoch, each step once in MLflow, the same weights but for rounding.
"""

from __future__ import annotations

import re
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.cluster import train
from tests.cluster.nodes import Nodes, why_not
from tests.deadlines import stretched
from tests.lazy import mlflow
from tests.ranks import run_on_two_ranks

pytestmark = pytest.mark.ray


class Fit:
    """An elastic fit that runs on the head of some nodes."""

    def __init__(
        self, nodes: Nodes, folder: Path, epochs: int, fewest: int, most: int = 2, **env: str
    ) -> None:
        self.folder, self.epochs, self.fewest, self.most = folder, epochs, fewest, most
        folder.mkdir()
        self.errors = folder / "errors"
        command = (
            sys.executable,
            "-m",
            "tests.cluster.train",
            str(folder),
            str(epochs),
            str(fewest),
            str(most),
        )
        env |= {"RAY_ADDRESS": nodes.address, "RAYLIT_RESIZE_EVERY_S": "3"}
        with (folder / "out").open("w") as out, self.errors.open("w") as errors:
            self.process = nodes.popen(
                0,
                *command,
                cwd=str(train.__file__).rpartition("/")[0],
                env=env,
                stdout=out,
                stderr=errors,
            )

    def __enter__(self) -> Fit:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()

    def told(self) -> list[str]:
        """What the fit said of sizes."""
        return [
            line
            for line in self.errors.read_text().splitlines()
            if line.startswith(("Resized", "Began"))
        ]

    def steps(self) -> dict[int, list[tuple[float, int, list[int]]]]:
        """Of each optimizer step.

        When the workers began that took a batch of it, its epoch, and the samples.
        """
        found = defaultdict(list)
        for path in self.folder.glob("steps-*"):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    began, step, epoch, *samples = line.split()
                    found[int(step)].append((float(began), int(epoch), list(map(int, samples))))
        return found

    def wait(self, until: Callable[[], object], timeout_s: float = 150) -> None:
        """Wait until something has happened to the fit."""
        deadline = time.monotonic() + stretched(timeout_s)
        while not until():
            assert self.process.poll() is None and time.monotonic() < deadline, (
                self.errors.read_text()
            )
            time.sleep(0.05)

    def wait_for_more(self, number: int) -> None:
        """Wait until the workers that there are now have begun so many further steps."""
        last = max(self.steps())
        self.wait(lambda: max(self.steps()) >= last + number)

    def check(self, expected: dict[str, torch.Tensor] | None) -> None:
        """What counts of a step is what its last workers took: the others had not saved it.

        `expected`: weights, if all steps are of one size.
        """
        assert self.process.wait(200) == 0, self.errors.read_text()
        per_epoch = train.NUM_SAMPLES // train.BATCH_SIZE // self.most
        seen, sizes = defaultdict(list), {}
        for step, batches in self.steps().items():
            last = max(began for began, *_ in batches)
            for began, epoch, samples in batches:
                if began == last:
                    seen[epoch] += samples
                    sizes[step] = sizes.get(step, 0) + len(samples)
        assert sorted(seen) == list(range(self.epochs))
        for samples in seen.values():
            assert set(samples) == set(range(train.NUM_SAMPLES))
            # those that are missing for all workers to have as many come twice
            assert len(samples) - train.NUM_SAMPLES in (
                range(2 * self.most) if expected is None else (0,)
            )
        assert sorted(sizes) == list(range(len(sizes)))
        client = mlflow.tracking.MlflowClient(f"sqlite:///{self.folder}/mlflow.db")
        (run,) = client.search_runs([client.get_experiment_by_name("two nodes").experiment_id])
        assert (run.info.status, run.data.tags["raylit.num_workers"]) == (
            "FINISHED",
            f"{self.fewest} to {self.most}",
        )
        history = {
            name: [metric.step for metric in client.get_metric_history(run.info.run_id, name)]
            for name in ("loss_step", "loss_epoch")
        }
        assert history["loss_step"] == list(range(len(sizes)))
        assert len(history["loss_epoch"]) == len(set(history["loss_epoch"])) == self.epochs
        if expected is None:
            return
        assert set(sizes.values()) == {train.BATCH_SIZE * self.most}
        assert history["loss_epoch"] == [
            per_epoch * (epoch + 1) - 1 for epoch in range(self.epochs)
        ]
        found = torch.load(self.folder / "end.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


@pytest.fixture
def nodes(all_nodes: Nodes) -> Iterator[Nodes]:
    """Those nodes; afterwards only the first runs."""
    yield all_nodes
    all_nodes.kill(1)
    all_nodes.kill(2)


@pytest.fixture(scope="module")
def all_nodes() -> Iterator[Nodes]:
    """Three nodes with one CPU each, the first of which is started."""
    reason = why_not()
    assert reason is None, (
        f"This test makes network namespaces, which cannot be had here: {reason}. Leave it out with"
        " -m 'not ray'."
    )
    with Nodes(3) as made:
        made.start(0)
        yield made


def undisturbed_short(folder: str) -> dict[str, torch.Tensor]:
    """The same fit on ranks without Ray."""
    return train.fit(folder, epochs=2)


def undisturbed_with_validation(folder: str) -> dict[str, torch.Tensor]:
    """Likewise; and validation is waited for."""
    return train.fit(folder, epochs=2, validates=True)


def undisturbed(folder: str) -> dict[str, torch.Tensor]:
    """Likewise."""
    return train.fit(folder, epochs=4)


def test_a_node_dies_and_one_comes(nodes: Nodes, tmp_path: Path) -> None:
    nodes.start(1)
    (tmp_path / "plain").mkdir()
    with Fit(nodes, tmp_path / "ray", 2, fewest=1) as fit:
        expected = run_on_two_ranks(undisturbed_short, tmp_path / "plain")[0]
        # a save is written while training goes on: on a busy machine it takes some steps
        fit.wait(lambda: len(fit.steps()) > 4 and [*fit.folder.glob("recovery/*.ckpt")])
        nodes.kill(1)
        killed = time.time()
        fit.wait(lambda: any(began > killed for began, *_ in fit.steps()[max(fit.steps())]))
        shrunk = time.time()
        fit.wait_for_more(1)
        nodes.start(1)
        there = time.time()
        fit.wait(lambda: len(fit.told()) == 2)
        grown = time.time()
        fit.check(expected)
    print(
        f"to the next step after a node died: {shrunk - killed:.1f} s; from a new node's being"
        f" there to training on it: {grown - there:.1f} s"
    )
    shrink, growth = fit.told()
    assert shrink.startswith(f"Resized from 2 to 1 workers (node {nodes.addresses[1]} ("), shrink
    assert re.search(
        r", step \d+; global batch kept: accumulate_grad_batches=2; learning rate unchanged\.$",
        shrink,
    ), shrink
    assert growth.startswith("Resized from 1 to 2 workers (node"), growth
    assert growth.endswith(
        "global batch kept: accumulate_grad_batches=1; learning rate unchanged."
    ), growth
    assert shrunk - killed < stretched(30)
    began = sorted({began for batches in fit.steps().values() for began, *_ in batches})
    assert len(began) == 3
    # the workers that left for more to come had saved every step they took
    assert not [
        step
        for step, batches in fit.steps().items()
        if {began[1], began[2]} <= {one for one, *_ in batches}
    ]


@pytest.mark.long
@pytest.mark.timeout(stretched(450))
def test_nodes_come_and_go_again_and_again(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with Fit(nodes, tmp_path / "ray", 4, fewest=1) as fit:  # there is one node
        expected = run_on_two_ranks(undisturbed, tmp_path / "plain")[0]
        fit.wait(fit.steps)
        for again in range(3):
            nodes.start(1)
            fit.wait(lambda: len(fit.told()) == 2 + 2 * again)  # noqa: B023  # it is called at once
            fit.wait_for_more(3)
            nodes.kill(1)
            fit.wait(lambda: len(fit.told()) == 3 + 2 * again)  # noqa: B023
            fit.wait_for_more(1)
        nodes.start(1)
        fit.check(expected)
    assert fit.told()[0].startswith(
        "Began with 1 of up to 2 workers, from the start; global batch kept:"
        " accumulate_grad_batches=2;"
    )


@pytest.mark.long
@pytest.mark.timeout(stretched(450))
def test_validations_that_are_not_waited_for(nodes: Nodes, tmp_path: Path) -> None:
    """Those that run when a node dies, or when workers leave for more to come, are run again.

    Each value comes once, for its step.
    """
    nodes.start(1)
    (tmp_path / "plain").mkdir()
    with Fit(nodes, tmp_path / "ray", 2, fewest=1, VALIDATES="1") as fit:
        expected = run_on_two_ranks(undisturbed_with_validation, tmp_path / "plain")[0]
        fit.wait(lambda: len(fit.steps()) > 5)
        nodes.kill(1)
        fit.wait(fit.told)
        fit.wait_for_more(4)
        nodes.start(1)
        fit.wait(lambda: len(fit.told()) == 2)
        fit.check(expected)
    ours, theirs = (
        [
            (row["step"], row["val_loss"])
            for row in torch.load(tmp_path / kind / "history.pt")
            if "val_loss" in row
        ]
        for kind in ("ray", "plain")
    )
    per_epoch = train.NUM_SAMPLES // train.BATCH_SIZE // 2
    assert (
        [step for step, _ in ours]
        == [step for step, _ in theirs]
        == list(range(4, 2 * per_epoch + 1, train.VALIDATE_EVERY))
    )
    assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-3)
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path}/ray/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("two nodes").experiment_id])
    logged = [
        (metric.step + 1, metric.value)
        for metric in client.get_metric_history(run.info.run_id, "val_loss")
    ]
    assert sorted(logged) == [(step, pytest.approx(value)) for step, value in ours]


@pytest.mark.long
@pytest.mark.timeout(stretched(450))
def test_a_node_falls_silent(nodes: Nodes, tmp_path: Path) -> None:
    """Its connections are not closed: the other worker waits for it, and Ray takes it for alive."""
    nodes.start(1)
    (tmp_path / "plain").mkdir()
    try:
        with Fit(nodes, tmp_path / "ray", 2, fewest=1) as fit:
            expected = run_on_two_ranks(undisturbed_short, tmp_path / "plain")[0]
            fit.wait(lambda: len(fit.steps()) > 4)
            nodes.cut(1)
            cut = time.time()
            fit.wait(fit.told)
            print(f"to going on after a node fell silent: {time.time() - cut:.1f} s")
            fit.check(expected)
    finally:
        nodes.kill(1)
        nodes.join(1)


@pytest.mark.long
@pytest.mark.timeout(stretched(450))
def test_a_node_is_to_be_taken_away(nodes: Nodes, tmp_path: Path) -> None:
    """By its notice.

    The run is saved, goes on without the node though it still is there, and no step is taken twice.
    """
    nodes.start(1)
    (tmp_path / "plain").mkdir()
    with Fit(nodes, tmp_path / "ray", 2, fewest=1) as fit:
        expected = run_on_two_ranks(undisturbed_short, tmp_path / "plain")[0]
        fit.wait(lambda: len(fit.steps()) > 2)
        nodes.drain((tmp_path / "ray" / f"node-{nodes.addresses[1]}").read_text(), deadline_s=100)
        fit.wait(fit.told)
        fit.check(expected)
    assert (
        "A node is to be taken away: all have saved the run and start again without it."
        in fit.errors.read_text()
    )
    assert all(len({began for began, *_ in batches}) == 1 for batches in fit.steps().values())


@pytest.mark.long
@pytest.mark.timeout(stretched(450))
def test_steps_that_cannot_be_dealt_out_evenly(nodes: Nodes, tmp_path: Path) -> None:
    """Of three workers, two go on with their own batches.

    Steps are smaller, and still each sample comes once per epoch.
    """
    nodes.start(1)
    nodes.start(2)
    with Fit(nodes, tmp_path / "ray", 4, fewest=2, most=3) as fit:
        fit.wait(lambda: len(fit.steps()) > 4)
        nodes.kill(2)
        fit.wait(fit.told)
        nodes.start(2)
        fit.wait(lambda: len(fit.told()) == 2)
        nodes.kill(1)
        nodes.kill(2)
        fit.wait(lambda: "Waiting for the Ray cluster since" in fit.errors.read_text())
        assert "2 workers ask for 2 CPU; it has" in fit.errors.read_text()
        nodes.start(2)
        fit.check(None)
    assert (
        "batch of each worker kept, so that a step takes 2/3 of the data, since 3 batches cannot be"
        " dealt out evenly to 2 workers;" in fit.told()[0]
    )
    assert "Resized from 2 to 3 workers" in fit.told()[1]
    assert "Resized from 3 to 2 workers" in fit.told()[2]
