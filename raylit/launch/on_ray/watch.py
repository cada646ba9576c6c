"""Says on the driver what becomes of the workers.

What they wait for, where they are, that they are started anew.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Collection
from typing import Any

import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group

from raylit.runtime.messages import info

FIRST_S, EVERY_S = 5.0, 30.0  # of waiting, until it is said and until it is said again


class Watch:
    """Follows the workers of one job.

    Args:
        num_workers: how many are wanted, at least.
        resources: what each reserves.
        most: how many are wanted at most; 0: it does not change.

    Attributes:
        num_failures: how often workers failed and were started anew.
        is_running: whether all ranks have started.
        all_left: set while none is there any more.
        num_starts: how often all ranks have started a job.
        results: of workers that are kept: the numbers of their jobs, with references to what came
            of them, pickled, in lists.
    """

    def __init__(self, num_workers: int, resources: dict[str, float], most: int = 0) -> None:
        self.num_workers = num_workers
        self.resources = resources
        self.most = most
        self._before: list[str] = []  # the node of each rank, as they were started last
        self._how: str | None = None  # an elastic job goes on
        self._lacks_room = False  # even for the fewest workers of an elastic job
        self.num_failures = 0
        self.is_running = False
        self.num_starts = 0
        self.all_left = threading.Event()
        self.results: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ranks: dict[int, dict[str, Any]] = {}
        self._began = time.monotonic()
        self._next = self._began + FIRST_S

    def started(self, where: dict[str, Any]) -> None:
        """A rank has started; once all have, say where."""
        self._ranks[where["rank"]] = where
        if len(self._ranks) < where["size"]:
            return
        self.is_running = True
        self.num_starts += 1
        self.all_left.clear()
        nodes: dict[str, list[str]] = {}
        for rank in sorted(self._ranks):
            one = self._ranks[rank]
            nodes.setdefault(one["node"], []).append(f"rank {rank} on {one['device']}")
        for node, ranks in nodes.items():
            info(f"Node {node}: {', '.join(ranks)}")
        self._say_size()

    def went_on(self, how: str) -> None:
        """An elastic job begins or goes on."""
        self._how = how
        self._say_size()

    def _say_size(self) -> None:
        """Say, once it is known how an elastic job goes on, with how many workers it does, and why with others than before."""
        if self._how is None or not self.is_running:
            return
        now = [one["node"] for one in self._ranks.values()]
        if not self._before and len(now) < self.most:
            info(f"Began with {len(now)} of up to {self.most} workers, {self._how}.")
        elif self._before and len(now) != len(self._before):
            changes = [
                f"node {node} left" for node in dict.fromkeys(self._before) if node not in now
            ]
            changes += [
                f"node {node} came" for node in dict.fromkeys(now) if node not in self._before
            ]
            why = f" ({', '.join(changes)})" if changes else ""
            info(f"Resized from {len(self._before)} to {len(now)} workers{why}, {self._how}.")
        self._before = now
        self._how = None

    def lacks_room(self, lacks: bool) -> None:
        """There is not room for the fewest workers that an elastic job is to have, or there is again."""
        self._lacks_room = lacks

    def left(self, rank: int) -> None:
        """A rank is through."""
        self._ranks.pop(rank, None)
        if not self._ranks:
            self.all_left.set()

    def did(self, result: tuple[int, Any]) -> None:
        """Workers that are kept are through with a job."""
        self.results.put(result)

    def failed(self, why: str) -> None:
        """Workers failed and are started anew."""
        self.num_failures += 1
        self.restart(why)

    def restart(self, why: str) -> None:
        """The workers are started anew."""
        info(why)
        self._ranks, self.is_running, self._how, self._began = {}, False, None, time.monotonic()
        self._next = self._began + FIRST_S

    def say(self, text: str) -> None:
        """A worker wants something said."""
        info(text)

    def look(self) -> None:
        """Say, every so often, what is asked for and what the cluster has, if it cannot give it now."""
        now = time.monotonic()
        if self.is_running or now < self._next:
            return
        self._next = now + EVERY_S
        # an elastic job reserves nothing before there is enough, and says so
        if self._lacks_room or (
            not self.most and {"PENDING", "RESCHEDULING"} & set(groups(self.resources).values())
        ):
            info(
                f"Waiting for the Ray cluster since {now - self._began:.0f} s:"
                f" {asked_and_there(self.num_workers, self.resources)}."
            )


def asked_and_there(num_workers: int, resources: dict[str, float]) -> str:
    """Return what workers ask for and what the cluster has, as text."""
    has = ray.cluster_resources()
    free = ray.available_resources()
    asked = ", ".join(f"{amount * num_workers:g} {name}" for name, amount in resources.items())
    there = ", ".join(
        f"{has.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in resources
    )
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    return (
        f"{num_workers} workers ask for {asked}; it has {there} on {num_nodes}"
        f" node{'s' if num_nodes != 1 else ''}"
    )


def groups(resources: dict[str, float] | None = None) -> dict[str, str]:
    """Return the states of the groups of reserved resources that this job has, by id.

    Only those for workers that each want `resources`, if given.
    """
    job = ray.get_runtime_context().get_job_id()
    wanted = {name: amount for name, amount in (resources or {}).items() if amount}
    return {
        name: group["state"]
        for name, group in ray.util.placement_group_table().items()
        if name.endswith(job)
        and group["state"] != "REMOVED"
        and (resources is None or wanted in group["bundles"].values())
    }


def remove_groups(resources: dict[str, float], before: Collection[str]) -> None:
    """Give back what a run reserved, but for what was there before.

    Nobody else does if Ray Train's controller was killed.
    """
    for name in groups(resources):
        if name not in before:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(name)))
