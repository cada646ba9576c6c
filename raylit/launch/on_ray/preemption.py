"""Whether a worker's machine is about to be taken away.

A node that is drained, as a spot machine is by its notice, or a SIGTERM.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import ray
import ray.train

from raylit.launch.on_ray.failure import DEAD
from raylit.launch.on_ray.mailbox import TERMINATED

if TYPE_CHECKING:
    from raylit.launch.on_ray.private import ActorHandle

ASK_EVERY_S = 5.0  # as often as Ray Train itself looks for nodes that are drained
ASK_DRIVER_EVERY_S = 0.5


class Notice:
    """The notice of a preemption, which a worker's loop asks for when the ranks agree on stops.

    Args:
        mailbox: tells whether the driver wants the workers to end; None for ranks that do not ask
            it.

    Attributes:
        given: whether the notice has come, to any rank.
        why: `ends` if the driver wants the run to end, `grows` if there is room for more workers,
            else nothing.
    """

    def __init__(self, mailbox: ActorHandle | None) -> None:
        self.given = False
        self.why = ""
        self._next = time.monotonic() + ASK_EVERY_S
        self._mailbox = mailbox
        self._next_question = 0.0
        self._answer: ray.ObjectRef[str] | None = None

    @property
    def terminated(self) -> bool:
        """Whether this process got a SIGTERM, or the driver wants the run saved and ended."""
        terminated = TERMINATED in os.environ or self._driver_ends()
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

    def _driver_ends(self) -> bool:
        """Tell whether the driver's last answer ends the job, without waiting for the next.

        The driver is asked again every now and then.
        """
        if self._mailbox is None or time.monotonic() < self._next_question:
            return False
        if self._answer is None:
            self._answer = self._mailbox.why_end.remote()
        if not ray.wait([self._answer], timeout=0)[0]:
            return False
        answer = self._answer
        self._answer = None
        self._next_question = time.monotonic() + ASK_DRIVER_EVERY_S
        try:
            self.why = ray.get(answer)
        except DEAD:  # it is gone, and this worker will be soon
            return False
        return bool(self.why)
