"""The number of workers of an elastic job.

It is as many as there is room for; Ray Train's controller asks for it here.

Ray's own policy takes a cluster as it was up to 20 s ago, without regard to other users, and ends
the workers to start more. This one looks at the resources that are free now on nodes that answer,
so that a start never waits for a node that is gone; and it has the workers save and leave before
more are started.

This runs in Ray's processes and is sent there as `mailbox.py` is. Of raylit it imports only
`mailbox.py` and `private.py`, which are sent along.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import ray
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from raylit.launch.on_ray.mailbox import answers, is_leave
from raylit.launch.on_ray.private import (
    DefaultFailurePolicy,
    ElasticScalingPolicy,
    FailureDecision,
    NoopDecision,
    ResizeDecision,
    draining_nodes,
    free_resources,
    groups,
    is_preemption,
)

if TYPE_CHECKING:
    from ray.train.v2.api.config import FailureConfig, ScalingConfig
    from ray.train.v2.api.exceptions import TrainingFailedError

    from raylit.launch.on_ray.mailbox import Restarts
    from raylit.launch.on_ray.private import (
        ActorHandle,
        ReservedGroup,
        ScalingDecision,
        TrainRunContext,
        WorkerGroupPollStatus,
        WorkerGroupState,
    )

NODE_ID = "ray.io/node-id"  # the label that each node has
LOOK_EVERY_S = 0.5  # at the cluster, while there is not enough room
# How often the workers' nodes are asked for an answer; one that is silent twice counts as gone.
ASK_EVERY_S = 2.0
GOES_S = 3.0  # how long a node that is being stopped may be reached after its workers have ended


class Room:
    """The room that the cluster has for the workers of one job.

    Args:
        resources: what each worker reserves.
        run: the name of Ray Train's run, which what it reserves carries.
    """

    def __init__(self, resources: dict[str, float], run: str) -> None:
        self.resources = {name: amount for name, amount in resources.items() if amount}
        self.run = run

    def nodes(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the nodes that workers can start on, and those that only Ray still takes for such.

        Both are the nodes' addresses by id.
        """
        alive = [node for node in ray.nodes() if node["Alive"]]
        leaving = draining_nodes()
        # All at once: each node that is gone takes `ANSWER_S` to give no answer
        with ThreadPoolExecutor(min(32, len(alive) or 1)) as pool:
            fit = [
                found and node["NodeID"] not in leaving
                for node, found in zip(alive, pool.map(answers, alive), strict=True)
            ]
        both = (
            {
                node["NodeID"]: node["NodeManagerAddress"]
                for node, fits in zip(alive, fit, strict=True)
                if fits is kind
            }
            for kind in (True, False)
        )
        return next(both), next(both)

    def reserved(self) -> list[ReservedGroup]:
        """Return the groups that this job has reserved."""
        return list(groups(self.run).values())

    def free(self, nodes: Collection[str]) -> dict[str, dict[str, float]]:
        """Return the resources that workers can have on each of the nodes.

        They are those that are free, and those that this job has there already.
        """
        free = free_resources()
        held = Counter(
            node for group in self.reserved() for node in group["bundles_to_node_id"].values()
        )
        # floating-point remainders must not cost a worker
        return {
            node: {
                name: free.get(node, {}).get(name, 0) + held[node] * amount + 1e-6
                for name, amount in self.resources.items()
            }
            for node in nodes
        }

    def lost(self) -> list[str]:
        """Return the addresses of the nodes that workers ran on and that are gone."""
        reserved = self.reserved()
        where = {node for group in reserved for node in group["bundles_to_node_id"].values()}
        nodes = [node for node in ray.nodes() if node["NodeID"] in where]
        with ThreadPoolExecutor(min(32, len(nodes) or 1)) as pool:
            there = list(pool.map(lambda node: node["Alive"] and answers(node), nodes))
        gone = sorted(
            node["NodeManagerAddress"]
            for node, is_there in zip(nodes, there, strict=True)
            if not is_there
        )
        # Ray reserves a group anew once it has noticed by itself that a node is dead
        return gone or ["of a worker" for group in reserved if group["state"] == "RESCHEDULING"][:1]


class AsManyAsFit(ElasticScalingPolicy):
    """Chooses the number of workers.

    Args:
        scaling_config: from how many to how many, and how often to look whether there is room for
            more.
        room: looks at the cluster.
        mailbox: tells the workers to leave.
        grows: whether the job can go on where it is, so that it may be interrupted.
    """

    def __init__(
        self, scaling_config: ScalingConfig, room: Room, mailbox: ActorHandle, grows: bool
    ) -> None:
        super().__init__(scaling_config)
        self.room = room
        self.mailbox = mailbox
        self.grows = grows
        self._shunned: list[str] = []
        # Nodes of workers that did not answer when they were asked last
        self._silent: list[str] = []
        self._lacks = False  # room for the fewest
        self._looked = float("-inf")

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Begin; should there be less room than it seemed, look again soon."""
        # With Ray's default of 60 s its own policy took 74 s to go on after a node had died, with
        # 10 s it took 34 s
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
        super().after_controller_start(train_run_context)

    def _get_reserved_resources(self) -> dict[str, dict[str, float]] | None:
        try:
            fit, unfit = self.room.nodes()
            self._shunned = list(unfit)
            return self.room.free(fit)
        except ray.exceptions.RayError:  # the head is busy or being started anew, and asked again
            return None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """Start with as many as fit, if those are enough."""
        time.sleep(max(0.0, self._looked + LOOK_EVERY_S - time.monotonic()))
        self._looked = time.monotonic()
        self._silent = []
        decision = super().make_decision_for_non_running_worker_group()
        lacks = not isinstance(decision, ResizeDecision)
        if lacks != self._lacks:
            self.mailbox.send.remote("lacks_room", lacks)
        if not lacks:
            # Else the workers that start now would be told at once to leave again
            self.mailbox.make_room.remote(False)
        self._lacks = lacks
        return decision

    def make_decision_for_running_worker_group(
        self, worker_group_state: WorkerGroupState, worker_group_status: WorkerGroupPollStatus
    ) -> NoopDecision:
        """Go on.

        But if there is room for more, have the workers save and leave, whereupon they are started
        anew.

        Raises:
            PreemptionError: a node is gone. Ray may take a minute to notice, and workers that wait
                for others there may never.
        """
        if time.monotonic() >= self._looked + ASK_EVERY_S:
            self._looked = time.monotonic()
            try:
                before = self._silent
                self._silent = self.room.lost()
            except ray.exceptions.RayError:
                return NoopDecision()
            if self._silent and self._silent == before:
                raise PreemptionError(PreemptionInfo(None, {node: [] for node in self._silent}))
        decision = super().make_decision_for_running_worker_group(
            worker_group_state, worker_group_status
        )
        if (
            self.grows
            and isinstance(decision, ResizeDecision)
            and decision.num_workers > worker_group_state.num_workers
        ):
            # Ray's own decision is not handed on: it would end the workers before they have saved
            self.mailbox.make_room.remote(True)
        return NoopDecision()

    def on_controller_start_worker_group(
        self, *, scaling_config: object, num_workers: int
    ) -> dict[str, str] | None:
        """Keep the workers away from nodes that Ray takes for alive, and that are not."""
        return {NODE_ID: f"!in({','.join(self._shunned)})"} if self._shunned else None


class SaysRestarts(DefaultFailurePolicy):
    """Ray's own, which says that the workers are started anew.

    Ray Train asks it once for each restart. A callback of its would be called at each look at the
    workers, of which there are many while some of them outlive a preempted one.

    Args:
        failure_config: how many failures, and how many preemptions, are allowed.
        restarts: is told of them.
    """

    def __init__(self, failure_config: FailureConfig, restarts: Restarts) -> None:
        super().__init__(failure_config)
        self.restarts = restarts

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide whether a failure ends the job or the workers are restarted."""
        decision = super().make_decision(training_failed_error)
        failures = getattr(training_failed_error, "worker_failures", {})
        if decision is FailureDecision.RETRY:
            if is_preemption(training_failed_error):
                self.restarts.say(
                    f"A node was taken away: all start again, {self.restarts.origin}."
                )
            elif failures:
                self.restarts.failed(failures)
        return decision


class LostNodesAreNoFailures(SaysRestarts):
    """Counts a node that is gone as a preemption, not as a failure of the user's code.

    Workers that left so that more can start count as neither.

    Args:
        failure_config: how many of each are allowed.
        room: looks at the cluster.
        restarts: is told of failures.
    """

    def __init__(self, failure_config: FailureConfig, room: Room, restarts: Restarts) -> None:
        super().__init__(failure_config, restarts)
        self.room = room

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Decide whether a failure ends the job or the workers are restarted."""
        failures = getattr(training_failed_error, "worker_failures", {})
        lost = (
            training_failed_error.preemption_info.preempted_node_ids
            if isinstance(training_failed_error, PreemptionError)
            else []
        )
        why = next((failure.why for failure in failures.values() if is_leave(failure)), None)
        if why == "ends":
            return FailureDecision.RAISE
        if why == "grows":
            self.restarts.say(
                "There is room for more workers: all have saved the run and start again."
            )
            return FailureDecision.RETRY
        if why is not None:
            self.restarts.say(
                "A node is to be taken away: all have saved the run and start again without it."
            )
            return self._preempted()
        if lost or (failures and (lost := self._lost(failures))):
            self.restarts.say(
                f"Node {', '.join(lost)} is gone: the run goes on from the newest checkpoint."
            )
            return self._preempted()
        return super().make_decision(training_failed_error)

    def _preempted(self) -> FailureDecision:
        """Decide by `max_preemption_failures`, a budget of its own; the restart was told of."""
        return DefaultFailurePolicy.make_decision(self, PreemptionError(PreemptionInfo(None, {})))

    def _lost(self, failures: dict[int, Exception]) -> list[str]:
        """Return the nodes that are gone.

        Where user code is not to blame, one may be about to go.
        """
        until = time.monotonic() + (0 if self.restarts.blames_user(failures) else GOES_S)
        while not (lost := self.room.lost()) and time.monotonic() < until:
            time.sleep(LOOK_EVERY_S)
        return lost
