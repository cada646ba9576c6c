"""Which cluster a process is connected to, and what is said of one that cannot be joined."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from raylit.errors import ConfigError
from raylit.launch.on_ray import cluster
from tests.lazy import ray


def raising(error: Exception, cause: Exception | None = None) -> Callable[..., Any]:
    def init(**arguments: Any) -> None:
        raise error from cause

    return init


@pytest.mark.parametrize(
    ("error", "cause", "said"),
    [
        (ConnectionError("no GCS"), None, r"cannot be joined: no GCS\. Start one with `ray start"),
        (RuntimeError("of version 2.9"), None, r"of version 2\.9\. Start one"),
        (RuntimeError("no"), ValueError("AuthTokenError: none"), r"Copy ~/\.ray/auth_token"),
        (ConnectionError("InvalidAuthToken"), None, r"asks for a token that this machine"),
    ],
)
def test_why_a_cluster_cannot_be_joined(
    monkeypatch: pytest.MonkeyPatch, error: Exception, cause: Exception | None, said: str
) -> None:
    """By a Ray that refuses: the true one would try for minutes."""
    monkeypatch.setattr("ray.init", raising(error, cause))
    with pytest.raises(ConfigError, match=rf"at 10\.0\.0\.1:6379 \(RAY_ADDRESS.*{said}") as raised:
        cluster.join("10.0.0.1:6379", {"logging_level": 30, "log_to_driver": False})
    assert raised.value.__cause__ is error


def test_a_mistake_elsewhere_is_not_said_to_be_the_clusters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ray.init", raising(TypeError("no such argument")))
    with pytest.raises(TypeError, match="no such argument"):
        cluster.join("10.0.0.1:6379", {"logging_level": 30, "log_to_driver": False})


def test_one_thread_at_a_time_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fits that begin at once share one cluster."""
    is_connected = threading.Event()
    asked: list[float] = []

    def connect(num_cpus: float) -> None:
        asked.append(num_cpus)
        threading.Event().wait(0.2)
        is_connected.set()

    monkeypatch.setattr(cluster, "_connect", connect)
    monkeypatch.setattr("ray.is_initialized", is_connected.is_set)
    threads = [threading.Thread(target=cluster.connect, args=(2.0,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked == [2.0]


@pytest.mark.parametrize(
    ("cpus", "wanted"),
    [
        (1, 4),  # no fewer than the machine has
        (6, 6),
        (4.5, 5),
    ],
)
def test_a_new_cluster_has_room_for_the_workers(
    monkeypatch: pytest.MonkeyPatch, cpus: float, wanted: int
) -> None:
    """Of this machine alone, whatever cluster an earlier process has left a note of."""

    class Started(Exception):
        pass

    given: dict[str, Any] = {}

    def init(**arguments: Any) -> None:
        given.update(arguments)
        raise Started

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(Started):
        cluster._connect(cpus)
    assert (given["address"], given["num_cpus"]) == ("local", wanted)


def test_who_is_not_connected_has_started_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert not cluster.started_here()
    assert cluster.inherited() == {}


@pytest.mark.long
@pytest.mark.ray
def test_a_cluster_that_was_started_here_is_known_and_kept(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # which comes too late
    monkeypatch.setenv("SET_AFTER_THE_START", "1")
    assert cluster.connect(64) is True, "raylit decides what of the workers' output is shown"
    assert ray.get_runtime_context().gcs_address == ray_cluster
    assert ray.cluster_resources()["CPU"] == 4
    assert cluster.started_here()
    assert "PATH" in cluster.inherited() and "SET_AFTER_THE_START" not in cluster.inherited()
    cluster.say_dashboard()
    assert "Ray dashboard: http://127.0.0.1:" in capfd.readouterr().err
    monkeypatch.setattr(cluster, "_started", "10.0.0.1:6379")  # another than the connected one
    assert not cluster.started_here() and cluster.inherited() == {}
