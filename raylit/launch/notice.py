"""Whether a worker's machine is about to be taken away: a node that is drained, as a spot machine is by its notice, or a SIGTERM."""

from __future__ import annotations

import os
import time

import ray.train

from raylit.launch.remote import TERMINATED

ASK_EVERY_S = 5.0  # as often as Ray Train itself looks for nodes that are drained


class Notice:
    """What the loop of a worker asks when the ranks agree on stops.

    Attributes:
        given: whether the notice has come, to any rank.
    """

    def __init__(self) -> None:
        self.given = False
        self._next = time.monotonic() + ASK_EVERY_S

    @property
    def terminated(self) -> bool:
        """Whether this process got a SIGTERM."""
        terminated = TERMINATED in os.environ
        self.given = self.given or terminated
        return terminated

    @property
    def is_due(self) -> bool:
        """Whether this rank wants `came` to be asked."""
        return time.monotonic() >= self._next

    def came(self) -> bool:
        """Ask Ray Train, which takes some milliseconds. To be called on all ranks."""
        self._next = time.monotonic() + ASK_EVERY_S
        self.given = self.given or ray.train.get_preemption_info() is not None
        return self.given
