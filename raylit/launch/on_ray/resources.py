"""The resources of the workers of a job, and whether the cluster has, or can get, room for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import ray

from raylit.errors import NoRoomError
from raylit.launch.on_ray import private
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from raylit.core.trainer import JobTrainer

# The monitor of a cluster says 5 s after its start whether the cluster can grow, and every 5 s.
WORD_S = 8.0


def resources_of(trainer: JobTrainer, gpu: bool) -> dict[str, float]:
    """Return the resources that each worker of a Trainer reserves.

    Args:
        trainer: says what else than a CPU.
        gpu: whether a GPU is part of it.
    """
    return {
        "CPU": 1.0,
        **({"GPU": 1.0} if gpu else {}),
        **(trainer.resources_per_worker or {}),
    }


def choose_gpu(trainer: JobTrainer) -> bool:
    """Decide whether each worker gets a GPU, and say so where the Trainer leaves it open.

    `accelerator="auto"` means one where the connected cluster has room for as many workers with
    one as are wanted, for the fewest of an elastic fit; where it is known how far the cluster
    grows, that counts.
    """
    if trainer.use_gpu is not None:
        return trainer.use_gpu
    wanted = trainer.min_workers
    there = _num_gpus(ray.cluster_resources())
    most = max(there, _num_gpus(private.most_resources() or {}))
    fits = room(resources_of(trainer, gpu=True)) >= wanted
    takes = most >= wanted and (fits or most > there)
    each = f"{wanted} worker" if wanted == 1 else f"each of {wanted} workers"
    if takes:
        chosen = f"a GPU for {each}"
    elif most:
        chosen = f"{_number(most, 'GPU')} for {_number(wanted, 'worker')}, so they get CPUs only"
    else:
        chosen = "no GPU, so the workers get CPUs only"
    info(f"accelerator='auto': the Ray cluster has {chosen}.")
    return takes


def check_room(
    num_workers: int, least: int, resources: Mapping[str, float], is_own: bool = False
) -> None:
    """Check that workers can be started, now or when the cluster has grown.

    A wait is announced with the missing resources.

    Args:
        num_workers: how many are wanted.
        least: how many are enough to begin with.
        resources: what each reserves.
        is_own: whether this process started the cluster, as large as its first job wanted it.

    Raises:
        NoRoomError: they would be waited for without end: the cluster cannot grow, or not as far.
    """
    if room(resources) >= least:
        return
    asked = asked_for(least, resources)
    there = f"it has {there_is(resources)}"
    most = private.most_resources()
    if most is not None:
        lacking = {
            name: amount * least
            for name, amount in resources.items()
            if amount * least > max(most.get(name, 0), ray.cluster_resources().get(name, 0))
        }
        if lacking:
            limit = ", ".join(f"{most.get(name, 0):g} {name}" for name in lacking)
            raise NoRoomError(
                f"{asked}, and the Ray cluster can grow to {limit} at most: they would wait for"
                f" ever. {_remedy(num_workers, resources)}, or raise the limit of its autoscaler."
            )
    elif is_own or private.grows(WORD_S) is False:
        otherwise = (
            "call ray.shutdown() before, so that a larger one is started"
            if is_own
            else "add nodes with `ray start --address=...`"
        )
        raise NoRoomError(
            f"{asked}, but the Ray cluster has no room for them, and it does not grow: {there}."
            f" {_remedy(num_workers, resources)}, or {otherwise}."
        )
    info(
        f"Waiting for the Ray cluster to grow: {asked}; {there}; it lacks"
        f" {missing(least, resources)}."
    )


def room(resources: Mapping[str, float]) -> int:
    """Return how many workers the nodes of the cluster could hold, if nobody else were there.

    Each worker has to fit on one node, so the sum over all nodes says too much.
    """
    wanted = {name: amount for name, amount in resources.items() if amount > 0}
    if not wanted:
        return 2**31
    return sum(
        # floating-point remainders must not cost a worker
        min(int(node["Resources"].get(name, 0) / amount + 1e-9) for name, amount in wanted.items())
        for node in ray.nodes()
        if node["Alive"]
    )


def missing(num_workers: int, resources: Mapping[str, float]) -> str:
    """Return the resources that the cluster lacks for so many workers, as text; empty if none."""
    has = ray.cluster_resources()
    lacks = {
        name: amount * num_workers - has.get(name, 0)
        for name, amount in resources.items()
        if amount * num_workers > has.get(name, 0)
    }
    if lacks:
        return ", ".join(f"{amount:g} {name}" for name, amount in lacks.items())
    if room(resources) >= num_workers:
        return ""  # others use it now
    each = ", ".join(f"{amount:g} {name}" for name, amount in resources.items())
    return f"nodes on which a worker with {each} fits"


def asked_for(num_workers: int, resources: Mapping[str, float]) -> str:
    """Return the number of workers and the resources that they ask for, as text."""
    asked = ", ".join(f"{amount * num_workers:g} {name}" for name, amount in resources.items())
    return f"{_number(num_workers, 'worker')} ask{'s' if num_workers == 1 else ''} for {asked}"


def there_is(resources: Mapping[str, float]) -> str:
    """Return the cluster's amounts of the resources, as text."""
    has = ray.cluster_resources()
    free = ray.available_resources()
    there = ", ".join(
        f"{has.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in resources
    )
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    return f"{there} on {_number(num_nodes, 'node')}"


def _num_gpus(resources: Mapping[str, float]) -> float:
    return resources.get("GPU", 0)


def _number(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def _remedy(num_workers: int, resources: Mapping[str, float]) -> str:
    if resources.get("GPU") and not room({"GPU": resources["GPU"]}):
        return "Leave out use_gpu, or give accelerator='auto' or 'cpu'"
    fit = room(resources)
    if 0 < fit < num_workers:
        return f"Ask for fewer workers (num_workers={fit})"
    return "Ask for less of each worker (resources_per_worker={'CPU': 1})"
