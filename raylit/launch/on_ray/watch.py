"""Messages on the driver about the state of the workers.

They tell that workers wait for resources, where they run, and that they are restarted.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from raylit.launch.on_ray import private
from raylit.launch.on_ray.resources import asked_for, missing, there_is
from raylit.runtime.messages import info

if TYPE_CHECKING:
    import ray

    # the number of a job, and a reference to what came of it
    Done: TypeAlias = tuple[int, list[ray.ObjectRef[bytes]]]

FIRST_S, EVERY_S = 5.0, 30.0  # of waiting, until it is said and until it is said again


class Where(TypedDict):
    """Where a rank has started, and among how many."""

    rank: int
    size: int
    node: str
    device: str


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
        run: the name of Ray Train's run whose workers these are; the launcher writes it at each
            start.
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
        self.run = ""
        self.all_left = threading.Event()
        self.results: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._ranks: dict[int, Where] = {}
        self._began = time.monotonic()
        self._next = self._began + FIRST_S

    def started(self, where: Where) -> None:
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
        """Say with how many workers an elastic job goes on, and why with others than before.

        It is said once it is known how the job goes on.
        """
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
        """There is no room for the fewest workers an elastic job is to have, or there is again."""
        self._lacks_room = lacks

    def left(self, rank: int) -> None:
        """A rank is through."""
        self._ranks.pop(rank, None)
        if not self._ranks:
            self.all_left.set()

    def did(self, result: Done) -> None:
        """Workers that are kept are through with a job."""
        self.results.put(result)

    def failed(self, why: str) -> None:
        """Workers failed and are started anew."""
        self.num_failures += 1
        self.restart(why)

    def restart(self, why: str) -> None:
        """The workers are started anew."""
        info(why)
        self._ranks = {}
        self.is_running = False
        self._how = None
        self._began = time.monotonic()
        self._next = self._began + FIRST_S

    def say(self, text: str) -> None:
        """A worker wants something said."""
        info(text)

    def look(self) -> None:
        """Say now and then how much is asked for and how much there is, if that is too little."""
        now = time.monotonic()
        if self.is_running or now < self._next:
            return
        self._next = now + EVERY_S
        # an elastic job reserves nothing before there is enough, and says so
        if self._lacks_room or (not self.most and self._is_pending()):
            info(
                f"Waiting for the Ray cluster since {now - self._began:.0f} s:"
                f" {asked_for(self.num_workers, self.resources)}; it has"
                f" {there_is(self.resources)}{self._lacking()}."
            )

    def _is_pending(self) -> bool:
        """Tell whether the run has asked for resources that it does not have yet."""
        states = {group["state"] for group in private.groups(self.run).values()} if self.run else ()
        return bool({"PENDING", "RESCHEDULING"} & set(states))

    def _lacking(self) -> str:
        lacks = missing(self.num_workers, self.resources)
        return f"; it lacks {lacks}" if lacks else ""
