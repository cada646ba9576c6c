"""Whether anything of a fit is left on a Ray cluster."""

from __future__ import annotations

import time

from tests.deadlines import stretched

OF_A_FIT = ("RayTrainWorker", "Mailbox", "Controller")


def none_is_left(address: str) -> bool:
    """Wait until no actor of a fit lives; Ray ends those whose driver is gone a little later."""
    from ray.util.state import list_actors

    deadline = time.monotonic() + stretched(20)
    while True:
        alive = list_actors(address, filters=[("state", "=", "ALIVE")])
        if not any(word in actor.class_name for actor in alive for word in OF_A_FIT):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
