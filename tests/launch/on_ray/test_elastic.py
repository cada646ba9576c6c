"""How many workers an elastic job is started with, and what becomes of its failures.

Whole fits: tests/cluster/test_elastic.py.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from raylit.errors import LaunchError
from raylit.launch.on_ray.elastic import AsManyAsFit, LostNodesAreNoFailures, Room, SaysRestarts
from raylit.launch.on_ray.failure import failure_of, raise_original
from raylit.launch.on_ray.mailbox import Left, Mailbox, Restarts, answers
from raylit.launch.on_ray.private import (
    FailureDecision,
    NoopDecision,
    ResizeDecision,
    free_resources,
)
from raylit.launch.on_ray.watch import Watch
from tests.deadlines import stretched
from tests.lazy import ray

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]  # of four CPUs


def until(true: Any, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + stretched(timeout_s)
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def mailbox() -> Any:
    actor = ray.remote(num_cpus=0)(Mailbox).remote()
    yield actor
    ray.kill(actor)


def test_there_is_room_where_others_have_nothing() -> None:
    from ray.util.placement_group import placement_group, remove_placement_group

    others = placement_group([{"CPU": 1.0}], name="fit-b/0")
    assert others.wait(20)
    room = Room({"CPU": 1.0, "GPU": 0.0}, "fit-a")
    fit, unfit = room.nodes()
    assert len(fit) == 1 and not unfit and not room.lost()
    own = placement_group([{"CPU": 1.0}, {"CPU": 1.0}], name="fit-a/0")
    assert own.wait(20)
    (node,) = fit
    until(lambda: free_resources()[node].get("CPU", 0) == 1)
    # one is free, two are its own, one is the others'
    assert room.free(fit) == {node: {"CPU": pytest.approx(3)}}
    assert not Room({"CPU": 1.0}, "fit-c").reserved()
    for group in (own, others):
        remove_placement_group(group)
    until(lambda: room.free(fit) == {node: {"CPU": pytest.approx(4)}})


def test_a_node_that_does_not_answer_is_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": listening.getsockname()[1]}
        assert answers(node)
    assert not answers(node)


class Decided:
    """What a policy needs of Ray's controller, which is not there."""

    start_time, num_workers = 0.0, 2


def test_as_many_as_fit(mailbox: Any) -> None:
    def policy(
        least: int, most: int, resources: dict[str, float], grows: bool = True
    ) -> AsManyAsFit:
        scaling = ray.train.ScalingConfig(
            num_workers=(least, most),
            resources_per_worker=resources,
            elastic_resize_monitor_interval_s=0.0,
        )  # type: ignore[call-arg]
        made = AsManyAsFit(scaling, Room(resources, "fit-a"), mailbox, grows)
        # There is no run that Ray's coordinator would know
        made._maybe_send_resource_request = lambda: None
        return made

    decision = policy(1, 3, {"CPU": 1.0}).make_decision_for_non_running_worker_group()
    assert decision == ResizeDecision(3, {"CPU": 1.0})
    decision = policy(1, 9, {"CPU": 1.5}).make_decision_for_non_running_worker_group()
    assert decision == ResizeDecision(2, {"CPU": 1.5})
    assert policy(5, 9, {"CPU": 1.0}).make_decision_for_non_running_worker_group() == NoopDecision()
    # while they run, workers are never ended, but asked to leave if there is room for more
    for grows, most, answer in ((False, 4, ""), (True, 2, ""), (True, 4, "grows")):
        found = policy(1, most, {"CPU": 1.0}, grows).make_decision_for_running_worker_group(
            Decided(), None
        )
        assert (found, ray.get(mailbox.why_end.remote())) == (
            NoopDecision(),
            answer,
        )
    policy(1, 3, {"CPU": 1.0}).make_decision_for_non_running_worker_group()
    assert ray.get(mailbox.why_end.remote()) == ""


def test_only_failures_are_counted(mailbox: Any) -> None:
    room = Room({"CPU": 1.0}, "fit-a")
    policy = LostNodesAreNoFailures(
        ray.train.FailureConfig(max_failures=1, max_preemption_failures=1),
        room,
        Restarts(mailbox, 1, 0, "from the newest checkpoint"),
    )

    def decide(failure: Exception) -> Any:
        return policy.make_decision(ray.train.WorkerGroupError("", {0: failure})), [
            text for _, text in ray.get(mailbox.take.remote())
        ]

    for _ in range(2):
        assert decide(Left("grows")) == (
            FailureDecision.RETRY,
            ["There is room for more workers: all have saved the run and start again."],
        )
    decision, told = decide(Left(""))
    assert decision is FailureDecision.RETRY and "to be taken away" in told[0]
    assert decide(Left(""))[0] is FailureDecision.RAISE  # the second, of which one is allowed
    with pytest.raises(LaunchError, match="max_preemption_failures"):
        raise_original(ray.train.WorkerGroupError("", {0: Left("")}))
    assert decide(Left("ends")) == (
        FailureDecision.RAISE,
        [],
    )
    try:
        raise ArithmeticError("bad")
    except ArithmeticError as error:
        failure = failure_of(error)
    assert decide(failure) == (
        FailureDecision.RETRY,
        ["Restart 1 of 1, from the newest checkpoint: rank 0: ArithmeticError: bad."],
    )
    assert decide(failure) == (
        FailureDecision.RAISE,
        [],
    )


def test_a_restart_is_told_of_as_it_is_decided(mailbox: Any) -> None:
    """A preemption is one however often the workers that outlive it are looked at."""
    policy = SaysRestarts(
        ray.train.FailureConfig(max_failures=1, max_preemption_failures=1),
        Restarts(mailbox, 1, 0, "from the start"),
    )
    lost = ray.exceptions.RayActorError(preempted=True)
    said = []
    for error in (
        PreemptionError(PreemptionInfo(None, {})),
        ray.train.WorkerGroupError("", {0: lost}),
        ray.train.WorkerGroupError("", {1: ValueError("bad")}),
        ray.train.WorkerGroupError("", {1: ValueError("bad")}),
    ):
        decision = policy.make_decision(error)
        said.append((decision is FailureDecision.RETRY, ray.get(mailbox.take.remote())))
    assert said == [
        (True, [("restart", "A node was taken away: all start again, from the start.")]),
        (False, []),
        (True, [("failed", "Restart 1 of 1, from the start: rank 1: bad.")]),
        (False, []),
    ]


def test_each_change_of_size_is_said_once(capfd: pytest.CaptureFixture[str]) -> None:
    watch = Watch(1, {"CPU": 1.0}, most=2)

    def start(*nodes: str) -> None:
        for rank, node in enumerate(nodes):
            watch.started({"rank": rank, "size": len(nodes), "node": node, "device": "cpu"})

    def said() -> list[str]:
        return [line for line in capfd.readouterr().err.splitlines() if not line.startswith("Node")]

    start("a")
    watch.went_on("from the start")
    assert said() == ["Began with 1 of up to 2 workers, from the start."]
    for nodes, text in (
        (("a", "b"), ["Resized from 1 to 2 workers (node b came), from here."]),
        (("b", "c"), []),
        (("c",), ["Resized from 2 to 1 workers (node b left), from here."]),
    ):
        watch.restart("again")
        watch.went_on("from here")  # rank 0 may be the first to be heard
        start(*nodes)
        assert said() == ["again", *text]
