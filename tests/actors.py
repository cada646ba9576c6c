"""What is left of fits on a Ray cluster."""

from __future__ import annotations

import time

from tests.deadlines import stretched

OF_A_FIT = ("RayTrainWorker", "Mailbox", "Controller")


def left_of_fits(address: str) -> list[str]:
    """The actors of fits that are alive still; Ray ends those whose driver is gone a little later.

    So this waits until there is none, for some 20 s.
    """
    from ray.util.state import list_actors

    deadline = time.monotonic() + stretched(20)
    while True:
        alive = list_actors(address, filters=[("state", "=", "ALIVE")], detail=True)
        left = [
            f"{actor.class_name}, pid {actor.pid}, of job {actor.job_id}"
            for actor in alive
            if any(word in actor.class_name for word in OF_A_FIT)
        ]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)
