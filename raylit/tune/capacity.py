"""The resources of a trial, and how many trials the cluster has room for at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ray
from ray.tune import PlacementGroupFactory

from raylit.launch.on_ray.private import most_resources
from raylit.tune.space import SweepError

if TYPE_CHECKING:
    from raylit.tune.spec import SweepSpec

# The process of a trial of several workers, which does no work itself, reserves next to nothing: a
# thousandth of a CPU would keep a whole one from a worker
PLACE = {"node:__internal_head__": 0.001}


@dataclass
class Capacity:
    """Room for trials.

    Attributes:
        request: what Ray Tune reserves for a trial.
        concurrent: how many trials run at a time; None: as many as find room.
        note: what a user should know, or None.
    """

    request: PlacementGroupFactory
    concurrent: int | None
    note: str | None = None


def capacity_for(spec: SweepSpec) -> Capacity:
    """Return the resources of each trial and how many trials the cluster takes at a time.

    Raises:
        SweepError: the cluster has not enough for one trial and cannot grow to it.
    """
    own = {name: float(amount) for name, amount in spec.resources.items() if name != "num_workers"}
    workers = spec.num_workers
    whole = {name: amount * max(1, workers) for name, amount in own.items()}
    has = _largest()
    lacking = {name: amount for name, amount in whole.items() if has.get(name, 0.0) < amount}
    if lacking:
        asked = ", ".join(f"{amount:g} {name}" for name, amount in whole.items())
        there = ", ".join(f"{has.get(name, 0):g} {name}" for name in whole)
        raise SweepError(
            f"A trial asks for {asked}, but the Ray cluster has {there}: no trial would ever start."
            " Ask for less in resources, or add nodes.",
            ("resources", next(iter(lacking))),
        )
    fits = min((int(has[name] // amount) for name, amount in whole.items() if amount), default=None)
    asked_for = spec.max_concurrent
    concurrent = asked_for if fits is None else min(fits, asked_for or fits)
    note = None
    if asked_for is not None and fits is not None and fits < asked_for:
        note = f"The Ray cluster has room for {fits} trials at a time, not for {asked_for}."
    bundle = PLACE if workers else _bundle(own)  # the workers reserve what they need themselves
    return Capacity(PlacementGroupFactory([bundle]), concurrent, note)


def _bundle(own: dict[str, float]) -> dict[str, float]:
    kept = {name: amount for name, amount in own.items() if amount}
    return kept or dict(PLACE)


def _largest() -> dict[str, float]:
    """Return the resources that the cluster has, or can grow to."""
    has: dict[str, float] = dict(ray.cluster_resources())
    grows = most_resources() or {}
    return {name: max(has.get(name, 0), grows.get(name, 0)) for name in {*has, *grows}}
