"""Reading on in the middle of an epoch.

The same batches, with the same random numbers, as if nothing had happened.

The indices of the batches that were read before are drawn and dropped; their samples are not
loaded. What is random in them, such as a shuffled order, is drawn from the random states of the
time when the epoch began, which checkpoints hold. In worker processes the random numbers of a batch
depend on the epoch's seed and the batch's place in the epoch, not on the worker that happens to
load it, nor on what it loaded before; so a batch is the same with any number of workers, in an
epoch that is read from its middle as in a whole one.

With another number of ranks, or another batch size, than the epoch began with, the order of all its
samples is drawn as it was then; those that all ranks together have read are left out, and what
remains is dealt out to the ranks there are now.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from raylit.data.sampling.sampler import ShardedSampler, share
from raylit.runtime import rng


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
        num_ranks: among which the samples are dealt out.
        seeds_workers: whether to give each batch a seed, for worker processes.

    Attributes:
        skip: how many the next epoch leaves out, because it is the rest of the one that had begun;
            None: it is a new one.
    """

    def __init__(
        self,
        sampler: Any,
        generators: list[torch.Generator],
        identity: tuple[int, ...],
        num_ranks: int,
        seeds_workers: bool,
    ) -> None:
        self.sampler = sampler
        self.skip: int | None = None
        self.num_ranks = num_ranks
        # samples of a batch, where the order is one of samples; 1 where it is one of batches or
        # there are none
        self.unit: int = sampler.batch_size if type(sampler) is BatchSampler else 1
        self._spans: list[
            list[int]
            # Ranks, samples of a batch, batches of each rank: of the parts of the epoch that were read
            # otherwise
        ] = []
        self._from = 0  # the number of the first batch after them
        self._remaining: list[Any] | None = None  # this rank's share of an epoch that others began
        self._begun: dict[str, Any] | None = (
            None  # random states at the first index of the epoch that is read, and the epoch's seed
        )
        self._passes = 0
        self._sharded = next(
            (
                one
                for one in (sampler, getattr(sampler, "sampler", None))
                if isinstance(one, ShardedSampler)
            ),
            None,
        )
        self._generators = generators
        self._identity = identity
        self._seeds_workers = seeds_workers

    def __len__(self) -> int:
        if self._remaining is not None:
            return self._from + len(self._batches(self._remaining))
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
            "read_by": [self.num_ranks, self.unit],
            "spans": self._spans,
            "from": self._from,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` returned."""
        self._begun = state["begun"]
        self._passes = state["passes"]
        self._set_generators(state["generators"])
        if self._sharded is not None and state["order_seed"] is not None:
            self._sharded.seed = state["order_seed"]
        self._spans = state.get("spans", [])
        self._remaining = None
        self._from = state.get("from", sum(batches for *_, batches in self._spans))

    def share_rest(self, state: dict[str, Any], number: int, counted: int) -> bool:
        """Deal out what is left of an epoch, if other ranks began it or with other batches.

        To be called after `load_state_dict`.

        Args:
            state: what `state_dict` of any of them returned.
            number: batches that each rank had read of the whole epoch, as it goes on being counted.
            counted: as those counted who read them.

        Returns:
            Whether it had to be done.
        """
        num_ranks, unit = state.get("read_by", [self.num_ranks, self.unit])
        if state["begun"] is None or (
            [num_ranks, unit] == [self.num_ranks, self.unit] and not self._spans
        ):
            return False
        order = self._order_of(state)
        self._spans = [*self._spans, [num_ranks, unit, counted - self._from]]
        self._from = number
        taken = sum(ranks * size * batches for ranks, size, batches in self._spans)
        self._remaining = share(
            order[taken:],
            self._identity[0],
            self.num_ranks,
            "train" if self._sharded is None else self._sharded.mode,
        )
        return True

    def begin_anew(self) -> None:
        """Forget that others began the epoch that was read."""
        self._spans = []
        self._remaining = None
        self._from = 0

    def _order_of(self, state: dict[str, Any]) -> list[Any]:
        """Return the order of all samples, or batches, of an epoch, as it was when it began."""
        source = self.sampler.sampler if type(self.sampler) is BatchSampler else self.sampler
        source = source.sampler if isinstance(source, ShardedSampler) else source
        order_seed, epoch = state["begun"].get("drawn_by", (state["order_seed"], 0))
        if order_seed is not None:
            sharded = ShardedSampler(source, 0, 1, "evaluate", order_seed)
            sharded.set_epoch(epoch)
            return list(sharded)
        now = self.state_dict()["generators"]
        with rng.isolated():
            rng.restore(state["begun"]["rng"])
            self._set_generators(state["begun"]["generators"])
            order = list(source)
        self._set_generators(now)
        return order

    def _batches(self, indices: list[Any]) -> list[Any]:
        return (
            list(BatchSampler(indices, self.unit, self.sampler.drop_last))
            if type(self.sampler) is BatchSampler
            else indices
        )

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
        # What is below runs when the first index is asked for. A loader with workers calls iter()
        # twice and reads from the second.
        skip = self.skip
        self.skip = None
        if skip is not None and self._remaining is not None:
            drawn = iter(self._batches(self._remaining))
        elif skip is not None and self._begun is not None:
            drawn = self._again(self._begun, skip)
        else:
            self._passes += 1
            self.begin_anew()
            seed = _hash(torch.initial_seed(), self._passes, *self._identity)
            drawn_by = (
                (None, 0) if self._sharded is None else (self._sharded.seed, self._sharded.epoch)
            )
            self._begun = {
                "rng": rng.state(),
                "generators": self.state_dict()["generators"],
                "seed": seed,
                "drawn_by": drawn_by,
            }
            drawn = islice(self.sampler, skip or 0, None)
        if not self._seeds_workers:
            yield from drawn
            return
        assert self._begun is not None
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
    """The `worker_init_fn` of a loader whose batches bring their seeds.

    After the user's own, it lets this worker heed them.
    """

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


def resumable(loader: Any, rank: int, num_ranks: int, number: int) -> Any:
    """Return a copy of a DataLoader, the `number`-th of its stage, that can be read from the middle of an epoch; other loaders as they are."""
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or has_state(loader)
    ):
        return loader
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    sampler: Any = getattr(loader, name)
    samplers: tuple[Any, ...] = (loader, loader.sampler, sampler, getattr(sampler, "sampler", None))
    generators = {
        id(found): found
        for one in samplers
        if isinstance(found := getattr(one, "generator", None), torch.Generator)
    }
    changed = copy.copy(loader)
    # DataLoader forbids to set these attributes after construction; going through __dict__ spares
    # it a second construction
    changed.__dict__["_iterator"] = (
        None  # persistent workers read what the loader's own sampler draws
    )
    changed.__dict__[name] = ResumableSampler(
        sampler, list(generators.values()), (rank, number), num_ranks, loader.num_workers > 0
    )
    if loader.num_workers > 0:
        changed.__dict__["worker_init_fn"] = SeedingWorkers(loader.worker_init_fn)
    return changed


def keeper_of(loader: Any) -> Any:
    """Return what knows where `loader` is.

    Its sampler, the loader, or an iterable data set read in this process; None if nothing does.
    """
    for name in ("batch_sampler", "sampler"):
        if isinstance(getattr(loader, name, None), ResumableSampler):
            return getattr(loader, name)
    if has_state(loader):
        return loader
    own = (
        getattr(loader, "dataset", None)
        if isinstance(loader, DataLoader) and loader.num_workers == 0
        else None
    )
    return own if isinstance(own, IterableDataset) and has_state(own) else None


def has_state(data: Any) -> bool:
    """Tell whether a loader or data set keeps its own place, as torchdata's StatefulDataLoader does."""
    if isinstance(data, ResumableSampler):
        return False
    return callable(getattr(data, "state_dict", None)) and callable(
        getattr(data, "load_state_dict", None)
    )
