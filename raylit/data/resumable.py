"""Reading on in the middle of an epoch: the same batches, with the same random numbers, as if nothing had happened.

The indices of the batches that were read before are drawn and dropped; their samples are not loaded. What is random in them, such as a
shuffled order, is drawn from the random states of the time when the epoch began, which checkpoints hold. In worker processes the random
numbers of a batch depend on the epoch's seed and the batch's place in the epoch, not on the worker that happens to load it, nor on what it
loaded before; so a batch is the same with any number of workers, in an epoch that is read from its middle as in a whole one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from raylit import rng
from raylit.data.sampler import ShardedSampler


class SeededBatch(list[Any]):
    """The indices of a batch, with the seed of what is random in its samples."""

    seed: int = 0


class SeededIndex(int):
    """The index of a sample of a loader without batches, likewise."""

    seed: int = 0


class ResumableSampler:
    """Draws what another sampler or batch sampler draws, from the start or from further on.

    Args:
        sampler: gives indices or batches of indices.
        generators: of the loader and its samplers; their states are kept with the process's own.
        identity: numbers of the rank and the loader, which differ in what is random.
        seeds_workers: whether to give each batch a seed, for worker processes.

    Attributes:
        skip: how many the next epoch leaves out, because it is the rest of the one that had begun; None: it is a new one.
    """

    def __init__(self, sampler: Any, generators: list[torch.Generator], identity: tuple[int, ...], seeds_workers: bool) -> None:
        self.sampler = sampler
        self.skip: int | None = None
        self._begun: dict[str, Any] | None = None  # random states at the first index of the epoch that is read, and the epoch's seed
        self._passes = 0
        self._sharded = next((one for one in (sampler, getattr(sampler, "sampler", None)) if isinstance(one, ShardedSampler)), None)
        self._generators, self._identity, self._seeds_workers = generators, identity, seeds_workers

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        if name == "sampler":
            raise AttributeError(name)
        return getattr(self.sampler, name)  # batch_size, drop_last, set_epoch and the like

    def state_dict(self) -> dict[str, Any]:
        """Return the random states, of the epoch's beginning and of now, as plain data."""
        return {
            "begun": self._begun,
            "passes": self._passes,
            "generators": [generator.get_state() for generator in self._generators],
            "order_seed": None if self._sharded is None else self._sharded.seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned."""
        self._begun, self._passes = state["begun"], state["passes"]
        self._set_generators(state["generators"])
        if self._sharded is not None and state["order_seed"] is not None:
            self._sharded.seed = state["order_seed"]

    def rest(self, loader: Any, number: int) -> Iterator[Any]:
        """Begin to read what is left of the epoch that had begun, of which `number` batches were read."""
        now = self.state_dict()["generators"]
        self.skip = number
        batches: Iterator[Any] = iter(loader)
        self._set_generators(now)  # to begin draws a seed
        return batches

    def _set_generators(self, states: list[torch.Tensor]) -> None:
        for generator, state in zip(self._generators, states, strict=True):
            generator.set_state(state)

    def __iter__(self) -> Iterator[Any]:
        # What is below runs when the first index is asked for. A loader with workers calls iter() twice and reads from the second.
        skip, self.skip = self.skip, None
        if skip is not None and self._begun is not None:
            drawn = self._again(self._begun, skip)
        else:
            self._passes += 1
            seed = _hash(torch.initial_seed(), self._passes, *self._identity)
            self._begun = {"rng": rng.state(), "generators": self.state_dict()["generators"], "seed": seed}
            drawn = islice(self.sampler, skip or 0, None)
        if not self._seeds_workers:
            yield from drawn
            return
        for number, indices in enumerate(drawn, start=skip or 0):
            if isinstance(indices, (int, list, tuple)):
                indices = SeededIndex(indices) if isinstance(indices, int) else SeededBatch(indices)
                indices.seed = _hash(self._begun["seed"], number)
            yield indices

    def _again(self, begun: dict[str, Any], skip: int) -> Iterator[Any]:
        """Draw the indices of an epoch that had begun with these random states, drop the first, and leave all states as they are now."""
        now = self.state_dict()["generators"]
        with rng.isolated():
            rng.restore(begun["rng"])
            self._set_generators(begun["generators"])
            drawn: Iterator[Any] = iter(self.sampler)
            for _ in range(skip):
                next(drawn, None)
        self._set_generators(now)
        return drawn


def _hash(*numbers: int) -> int:
    """Return 63 bits that look random."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class SeedingWorkers:
    """The `worker_init_fn` of a loader whose batches bring their seeds: after the user's own, it lets this worker heed them."""

    def __init__(self, own: Callable[[int], None] | None) -> None:
        self.own = own

    def __call__(self, worker_id: int) -> None:
        """Prepare the worker process that runs this."""
        if self.own is not None:
            self.own(worker_id)
        fetch: Callable[[Any, Any], Any] = _MapDatasetFetcher.fetch

        def seeded_fetch(fetcher: Any, indices: Any) -> Any:
            if isinstance(indices, (SeededBatch, SeededIndex)):
                rng.seed(indices.seed)
            return fetch(fetcher, indices)

        _MapDatasetFetcher.fetch = seeded_fetch  # type: ignore[method-assign]  # of this worker process, which does nothing else


def resumable(loader: Any, rank: int, number: int) -> Any:
    """Return a copy of a DataLoader, the `number`-th of its stage, that can be read from the middle of an epoch; other loaders as they are."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or has_state(loader):
        return loader
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    sampler: Any = getattr(loader, name)
    samplers: tuple[Any, ...] = (loader, loader.sampler, sampler, getattr(sampler, "sampler", None))
    generators = {id(found): found for one in samplers if isinstance(found := getattr(one, "generator", None), torch.Generator)}
    changed = copy.copy(loader)
    # DataLoader forbids to set these attributes after construction; going through __dict__ spares it a second construction
    changed.__dict__["_iterator"] = None  # persistent workers read what the loader's own sampler draws
    changed.__dict__[name] = ResumableSampler(sampler, list(generators.values()), (rank, number), loader.num_workers > 0)
    if loader.num_workers > 0:
        changed.__dict__["worker_init_fn"] = SeedingWorkers(loader.worker_init_fn)
    return changed


def keeper_of(loader: Any) -> Any:
    """Return what knows where `loader` is: its sampler, or the loader itself if it keeps its own place; None if nothing does."""
    for name in ("batch_sampler", "sampler"):
        if isinstance(getattr(loader, name, None), ResumableSampler):
            return getattr(loader, name)
    return loader if has_state(loader) else None


def has_state(loader: Any) -> bool:
    """Tell whether a loader keeps its own place, as torchdata's StatefulDataLoader does."""
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))
