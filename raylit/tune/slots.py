"""How many trials run at a time, whatever their scheduler pauses."""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections import deque
from collections.abc import Iterator

from ray.air.execution import (
    AcquiredResources,
    PlacementGroupResourceManager,
    ResourceRequest,
)
from ray.air.execution.resources.placement_group import PlacementGroupAcquiredResources


class Slots(PlacementGroupResourceManager):
    """Reserves for so many trials at a time; further requests wait here.

    Ray Tune's own limit is one of the search and counts paused trials too. With it HyperBand
    compared no more trials than ran at a time: a bracket of 5 with 2 at a time stopped none. A
    population of trials was as small.

    Attributes:
        number: of trials that run at a time.
    """

    number: int

    def __init__(self, update_interval_s: float = 0.1) -> None:  # Ray Tune calls it to clear it
        super().__init__(update_interval_s)
        self._waiting: deque[ResourceRequest] = deque()

    def request_resources(self, resource_request: ResourceRequest) -> None:
        self._waiting.append(resource_request)
        self._fill()

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        if resource_request in self._waiting:
            self._waiting.remove(resource_request)
            return
        super().cancel_resource_request(resource_request)
        self._fill()

    def free_resources(self, acquired_resource: AcquiredResources) -> None:
        assert isinstance(acquired_resource, PlacementGroupAcquiredResources)
        super().free_resources(acquired_resource)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._pg_to_request) < self.number:
            super().request_resources(self._waiting.popleft())


@contextlib.contextmanager
def at_most(number: int | None) -> Iterator[None]:
    """Have Ray Tune run no more trials at a time in a block; None: as many as find room.

    `TuneController` takes a resource manager, but `tune.Tuner` has no way to hand it one.
    """
    if number is None:
        yield
        return

    def make() -> Slots:
        slots = Slots()
        slots.number = number
        return slots

    module = importlib.import_module("ray.tune.tune")
    own = module.TuneController
    made = functools.partial(own, resource_manager_factory=make)
    setattr(module, "TuneController", made)  # noqa: B010  mypy wants the class
    try:
        yield
    finally:
        setattr(module, "TuneController", own)  # noqa: B010
