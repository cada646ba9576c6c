from __future__ import annotations

import time

import pytest
from ray.air.execution import ResourceRequest

from raylit.tune.slots import Slots
from tests.deadlines import stretched


def wait_for(slots: Slots, request: ResourceRequest) -> None:
    deadline = time.monotonic() + stretched(20)
    while not slots.has_resources_ready(request):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.ray
def test_what_is_asked_for_beyond_the_slots_waits_for_one(ray_cluster: str) -> None:
    slots = Slots()
    slots.number = 2
    small = ResourceRequest([{"CPU": 1}])
    for _ in range(3):
        slots.request_resources(small)
    other = ResourceRequest([{"CPU": 2}])
    slots.request_resources(other)
    wait_for(slots, small)
    first = slots.acquire_resources(small)
    wait_for(slots, small)
    second = slots.acquire_resources(small)
    assert first is not None and second is not None
    time.sleep(0.5)
    assert not slots.has_resources_ready(small), "there are CPUs for it, but no slot"
    slots.cancel_resource_request(small)  # the third, which waits
    slots.free_resources(first)
    wait_for(slots, other)
    slots.free_resources(second)
    slots.clear()  # type: ignore[no-untyped-call]  of Ray
    assert not slots.has_resources_ready(other)
