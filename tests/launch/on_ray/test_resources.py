"""Whether workers fit on the cluster, and whether they get GPUs, by what Ray says of its nodes."""

from __future__ import annotations

from typing import Any

import pytest

import raylit as pl
from raylit.errors import ConfigError, LaunchError, NoRoomError
from raylit.launch.on_ray import cluster as connecting
from raylit.launch.on_ray import private
from raylit.launch.on_ray.resources import check_room, choose_gpu, missing, resources_of, room
from raylit.testing import TinyModel


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that has Ray say what nodes there are, and how far they may grow."""

    def has(
        *nodes: dict[str, float], grows: bool | None = False, most: dict[str, int] | None = None
    ) -> None:
        whole: dict[str, float] = {}
        for node in nodes:
            for name, amount in node.items():
                whole[name] = whole.get(name, 0) + amount
        listed = [{"Alive": True, "Resources": node} for node in nodes]
        monkeypatch.setattr("ray.nodes", lambda: listed)
        monkeypatch.setattr("ray.cluster_resources", lambda: whole)
        monkeypatch.setattr("ray.available_resources", lambda: whole)
        monkeypatch.setattr(private, "grows", lambda wait_s: grows)
        monkeypatch.setattr(private, "most_resources", lambda: most)

    return has


def trainer(num_workers: Any = 2, **arguments: Any) -> pl.Trainer:
    return pl.Trainer(num_workers=num_workers, max_epochs=1, logger=False, **arguments)


def test_a_worker_has_to_fit_on_one_node(cluster: Any) -> None:
    cluster({"CPU": 3}, {"CPU": 3, "GPU": 1}, {"GPU": 4})
    assert room({"CPU": 1}) == 6
    assert room({"CPU": 2}) == 2
    assert room({"CPU": 1, "GPU": 1}) == 1
    assert room({"CPU": 0, "GPU": 0.5}) == 10
    assert room({"TPU": 1}) == 0
    assert missing(3, {"CPU": 2}) == "nodes on which a worker with 2 CPU fits"
    assert missing(7, {"CPU": 1, "GPU": 1}) == "1 CPU, 2 GPU"
    assert missing(6, {"CPU": 1}) == ""


@pytest.mark.parametrize(
    ("nodes", "most", "num_workers", "gpu", "said"),
    [
        ([{"CPU": 4, "GPU": 2}], None, 2, True, "a GPU for each of 2 workers"),
        ([{"CPU": 4, "GPU": 1}], None, 2, False, "1 GPU for 2 workers, so they get CPUs only"),
        ([{"CPU": 4}], None, 2, False, "no GPU, so the workers get CPUs only"),
        ([{"CPU": 4, "GPU": 1}], None, (1, 4), True, "a GPU for 1 worker"),
        ([{"CPU": 8}, {"GPU": 2}], None, 2, False, "2 GPUs for 2 workers"),  # no CPU beside them
        ([{"CPU": 2}], {"CPU": 64, "GPU": 8}, 4, True, "a GPU for each of 4 workers"),
        ([{"CPU": 2}], {"CPU": 64, "GPU": 2}, 4, False, "2 GPUs for 4 workers"),
    ],
)
def test_auto_takes_a_gpu_for_each_worker_where_there_are_as_many(
    cluster: Any,
    capfd: pytest.CaptureFixture[str],
    nodes: Any,
    most: Any,
    num_workers: Any,
    gpu: bool,
    said: str,
) -> None:
    cluster(*nodes, most=most)
    assert choose_gpu(trainer(num_workers)) is gpu
    assert f"accelerator='auto': the Ray cluster has {said}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "gpu"),
    [
        ({"accelerator": "cpu"}, False),
        ({"accelerator": "gpu"}, True),
        ({"use_gpu": False}, False),
        ({"resources_per_worker": {"GPU": 2}}, True),
        ({"resources_per_worker": {"GPU": 0}}, False),
    ],
)
def test_who_says_so_gets_it(
    cluster: Any, capfd: pytest.CaptureFixture[str], arguments: dict[str, Any], gpu: bool
) -> None:
    cluster({"CPU": 4, "GPU": 4})
    asked = trainer(**arguments)
    assert (choose_gpu(asked), asked.accelerator) == (gpu, "gpu" if gpu else "cpu")
    assert capfd.readouterr().err == ""
    assert resources_of(asked, gpu)["CPU"] == 1
    assert resources_of(asked, gpu).get("GPU", 0) == (
        arguments.get("resources_per_worker", {}).get("GPU", 1 if gpu else 0)
    )


@pytest.mark.parametrize("is_own", [True, False])
def test_a_wait_without_end_is_an_error_at_once(cluster: Any, is_own: bool) -> None:
    cluster({"CPU": 4}, grows=None if is_own else False)
    check_room(4, 4, {"CPU": 1}, is_own)
    check_room(9, 2, {"CPU": 1}, is_own)  # an elastic fit begins with fewer
    with pytest.raises(
        NoRoomError,
        match=(
            r"5 workers ask for 5 CPU, but the Ray cluster has no room for them, and it does not"
            r" grow: it has 4 CPU \(4 free\) on 1 node\. Ask for fewer workers \(num_workers=4\)"
        ),
    ) as raised:
        check_room(5, 5, {"CPU": 1}, is_own)
    assert ("ray.shutdown()" in str(raised.value)) is is_own
    assert isinstance(raised.value, ConfigError) and isinstance(raised.value, LaunchError)
    with pytest.raises(NoRoomError, match=r"2 workers ask for 2 CPU, 2 GPU.*accelerator='auto'"):
        check_room(2, 2, {"CPU": 1, "GPU": 1}, is_own)
    with pytest.raises(NoRoomError, match=r"1 worker asks for 8 CPU.*resources_per_worker"):
        check_room(1, 1, {"CPU": 8}, is_own)


@pytest.mark.parametrize("grows", [True, None])
def test_a_cluster_that_may_grow_is_waited_for(
    cluster: Any, capfd: pytest.CaptureFixture[str], grows: bool | None
) -> None:
    cluster({"CPU": 4}, grows=grows)
    check_room(6, 6, {"CPU": 1, "GPU": 1})
    assert "it lacks 2 CPU, 6 GPU" in capfd.readouterr().err


def test_a_cluster_grows_no_further_than_its_limit(
    cluster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster({"CPU": 4}, grows=True, most={"CPU": 8})
    check_room(8, 8, {"CPU": 1})
    assert "Waiting for the Ray cluster to grow: 8 workers ask for 8 CPU" in capfd.readouterr().err
    with pytest.raises(NoRoomError, match=r"can grow to 8 CPU at most"):
        check_room(9, 9, {"CPU": 1})
    with pytest.raises(NoRoomError, match=r"can grow to 0 GPU at most"):
        check_room(1, 1, {"CPU": 1, "GPU": 1})


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_the_tests_own_cluster() -> None:
    assert room({"CPU": 1}) == 4
    assert private.grows(30) is False
    assert private.most_resources() is None
    with pytest.raises(NoRoomError, match="5 workers ask for 5 CPU"):
        trainer(5).fit(TinyModel())


@pytest.mark.parametrize(
    "given",
    [
        {"GPU": 0.5},
        {"CPU": "2"},
        {"CPU": -1},
        {"CPU": float("nan")},
        {"CPU": float("inf")},
        {"CPU": True},
        {"cpu": 1},
        {1: 1},
        {"": 1},
        [("CPU", 1)],
        2,
    ],
)
def test_what_no_worker_can_reserve(given: Any) -> None:
    with pytest.raises(ConfigError, match="resources_per_worker="):
        trainer(resources_per_worker=given)


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_gpu": True, "resources_per_worker": {"GPU": 0}},
        {"accelerator": "cpu", "resources_per_worker": {"GPU": 1}},
        {"accelerator": "cpu", "use_gpu": True},
        {"accelerator": "gpu", "use_gpu": False},
    ],
)
def test_gpus_and_none(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="one asks for GPUs and another for none"):
        trainer(**arguments)


def test_a_storage_path_has_to_mean_the_same_everywhere() -> None:
    with pytest.raises(ConfigError, match=r"storage_path='runs' is relative.*Give an absolute"):
        trainer(storage_path="runs")
    here = pl.Trainer(max_epochs=1, storage_path="runs", logger=False)
    assert here.storage_path == here.default_root_dir


def test_a_cluster_of_this_machine_is_not_made_for_thousands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray would start, and then a process for each worker."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"ask for 1e\+06 CPUs, and this machine has .*join a"):
        connecting._connect(1_000_000)
