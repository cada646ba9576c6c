"""The plan of an epoch: which samples it reads, in which order, and who reads them.

A plan never changes. Its order is drawn from (seed, epoch), or on one rank, whose order is that of
a plain loop, from the random states at the epoch's first index. Where a rank stands in it is one
number, a cursor in samples: those that all ranks together have read. Both are plain data, and a
checkpoint holds them.

To go on from a cursor, the order is drawn again as it was, the samples before the cursor are left
out, and the rest is dealt out to the ranks there are now, in batches of the size there is now. No
sample is loaded twice for it. In worker processes the random numbers of a batch depend on the run's
seed, the epoch and the batch's place in it, not on the worker that happens to load it nor on the
batches that it loaded before: so a batch is the same with any number of workers, and in an epoch
that is entered in its middle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from typing import Protocol, TypeGuard

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from torch.utils.data._utils.fetch import _MapDatasetFetcher

from raylit.data.positioned import PositionedLoader
from raylit.data.ray_dataset import RayDataLoader
from raylit.data.sampling.sampler import (
    ShardedSampler,
    copied,
    deal,
    order_number,
    seeded_order,
    tell_epoch,
)
from raylit.data.sampling.sources import (
    Index,
    RandomState,
    Sources,
    Stream,
    UserSampler,
    is_torchs_own,
    piece_of,
)
from raylit.data.worker_processes import begin_reading
from raylit.runtime import rng
from raylit.runtime.aliases import Batch, Loaders, StateDict
from raylit.runtime.messages import warn

END = object()


class Keeper(Protocol):
    """A loader or data set that keeps its own place."""

    def state_dict(self) -> StateDict:
        """Return where it is."""

    def load_state_dict(self, state: StateDict, /) -> object:
        """Go on from there."""


class SeededBatch(list[object]):
    """The indices of a batch, with the seed of the random numbers in its samples."""

    seed: int = 0


class SeededIndex(int):
    """The index of a sample of a loader without batches, likewise."""

    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """One reading of a loader's data.

    Attributes:
        epoch: whose.
        turn: how often the data was begun in it before; a short loader beside a long one begins
            several times.
        seed: of what is random in the samples, in worker processes.
        order_seed: the order is drawn from it and the epoch; None: from `states`.
        salts: what stands, beside the seed, for how the user seeded the samplers' own generators.
        states: the random states that the order is drawn from; None: from `order_seed`.
        num_ranks: among how many ranks the samples are dealt out.
        unit: samples of a batch; 1 where the order is one of batches, or there are none.
        start: samples that were read otherwise before: by another number of ranks, or in batches of
            another size.
        first: the number of the batch that begins at `start`.
    """

    epoch: int
    turn: int
    seed: int
    order_seed: int | None
    salts: list[int]
    states: RandomState
    num_ranks: int
    unit: int
    start: int = 0
    first: int = 0

    def cursor(self, batch: int) -> int:
        """Return how many samples all ranks have read before the batch of this number."""
        return self.start + self.num_ranks * self.unit * (batch - self.first)

    def batch_at(self, cursor: int) -> int:
        """Return the number of the batch that begins at a cursor."""
        return self.first + (cursor - self.start) // (self.num_ranks * self.unit)

    def state_dict(self) -> StateDict:
        """Return it as plain data."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


class PlannedSampler:
    """Draws the indices, or batches of indices, of one rank by a plan.

    Args:
        sampler: what the loader would draw them from.
        loader: the loader.
        rank: this rank.
        num_ranks: how many there are.
        number: of the loader among those of its stage.
        seed: of the run.

    Attributes:
        plan: what is being read, or was read last; None before the first.
        total: how many batches it has, as soon as the last of them was drawn; None before.
        goes_on: whether the next reading is the rest of one.
        begins_at: the number of the batch that it begins with.
    """

    def __init__(
        self,
        sampler: UserSampler,
        loader: DataLoader[object],
        rank: int,
        num_ranks: int,
        number: int,
        seed: int,
    ) -> None:
        self.sampler = sampler
        self.plan: Plan | None = None
        self.total: int | None = None
        self.begins_at = 0
        self.goes_on = False
        self._epoch = 0
        self._turn = 0
        self._rank = rank
        self._num_ranks = num_ranks
        self._number = number
        self._seed = seed
        self._seeds_workers = loader.num_workers > 0
        inner = sampler.sampler if type(sampler) is BatchSampler else sampler
        self._sharded = inner if isinstance(inner, ShardedSampler) else None
        self._source: UserSampler = inner if self._sharded is None else self._sharded.sampler
        self._sources = Sources(self._source)
        self._salts = self._sources.salts() if self._sharded is None else self._sharded.salts
        own = loader.generator
        self._loaders_generator: torch.Generator | None = (
            None if any(own is one for one in self._sources.generators) else own
        )
        # in the order of the format before
        self._generators: list[object] = list(
            {
                id(one): one
                for owner in (loader, loader.sampler, sampler, getattr(sampler, "sampler", None))
                if isinstance(one := getattr(owner, "generator", None), torch.Generator)
            }.values()
        )

    def __getattr__(self, name: str) -> object:
        if name == "sampler":  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(self.sampler, name)  # batch_size, drop_last and the like

    def __bool__(self) -> bool:
        return True  # also where it has no length

    def __len__(self) -> int:
        plan = self.plan
        if plan is not None and self.is_others:
            return plan.first + sum(1 for _ in self._batches(self._share(plan)))
        return len(self.sampler)

    def length_for(self, num_ranks: int) -> int:
        """Return how many batches each of `num_ranks` ranks would have."""
        if self._sharded is None:
            return len(self.sampler)
        each = math.ceil(len(self._source) / num_ranks)
        if self._sharded.mode == "drop":
            each = len(self._source) // num_ranks
        if type(self.sampler) is not BatchSampler or self.sampler.drop_last:
            return each // self.unit
        return math.ceil(each / self.unit)

    @property
    def is_others(self) -> bool:
        """Whether other ranks, or batches of another size, have begun the epoch that is read."""
        return self.plan is not None and self.plan.start > 0 and self.plan.epoch == self._epoch

    @property
    def dealt_to(self) -> int:
        """Among how many ranks raylit deals out the order; else a rank reads all of its own."""
        return 1 if self._sharded is None else self._sharded.size

    @property
    def unit(self) -> int:
        """Samples of a batch, where the order is one of samples; else 1."""
        return self.sampler.batch_size if type(self.sampler) is BatchSampler else 1

    def set_epoch(self, epoch: int) -> None:
        """Choose the plan of another epoch; the loop calls it."""
        if epoch != self._epoch:
            self._epoch = epoch
            self._turn = 0
        tell_epoch(self.sampler, epoch)

    # ---- in a checkpoint ----

    def state_dict(self, batch: int) -> StateDict:
        """Return the plan and the cursor, as plain data.

        Args:
            batch: how many batches of the plan this rank has trained on.
        """
        loaders = self._loaders_generator
        return {
            "plan": None if self.plan is None else self.plan.state_dict(),
            "cursor": 0 if self.plan is None else self.plan.cursor(batch),
            "seed": self._seed,
            "order_seed": None if self._sharded is None else self._sharded.seed,
            "salts": self._salts,
            "generators": self._sources.own(),
            "loaders_generator": None if loaders is None else loaders.get_state(),
            "num_ranks": self._num_ranks,
        }

    def go_on(self, state: StateDict, batch: int, counted: int) -> None:
        """Let the next reading be the rest of the one that `state` describes.

        Args:
            state: of this rank, or if they were another number, of any.
            batch: how many batches of the epoch were read, as this number of ranks counts them; 0:
                the next epoch is a new one.
            counted: as those counted who read them.
        """
        if "cursor" not in state:
            state = self._from_before(state, counted)
        self._seed = state["seed"]
        self._salts = state["salts"]
        if self._sharded is not None and state["order_seed"] is not None:
            self._sharded.seed = state["order_seed"]
            self._sharded.salts = state["salts"]
        self._sources.restore_own(state["generators"])
        if self._loaders_generator is not None and state["loaders_generator"] is not None:
            self._loaders_generator.set_state(state["loaders_generator"])
        if state["plan"] is None or not batch:
            return
        plan = Plan(**state["plan"])
        cursor = state["cursor"]
        self._turn = plan.turn + 1
        is_dealt = max(plan.num_ranks, self.dealt_to) > 1
        if state["num_ranks"] != self._num_ranks and not is_dealt:
            warn(
                f"{state['num_ranks']} ranks have begun the epoch, and {self._num_ranks} go on, but"
                f" which samples a rank reads is up to the {type(self._source).__name__}: in the"
                " rest of this epoch some may come twice or not at all."
            )
        begins_at = plan.batch_at(cursor)
        if (plan.num_ranks, plan.unit) != (self.dealt_to, self.unit):
            # a loader that has begun again beside a longer one counts for itself
            begins_at = batch if begins_at == counted else cursor // (self.dealt_to * self.unit)
            plan = replace(
                plan,
                # `state` may be that of another rank, and no two are to draw the same numbers
                seed=rng.mix(plan.seed, self._rank),
                num_ranks=self.dealt_to,
                unit=self.unit,
                start=cursor,
                first=begins_at,
            )
        self.plan = plan
        self.begins_at = begins_at
        self.goes_on = True

    def _from_before(self, state: StateDict, counted: int) -> StateDict:
        """Return a state of the format before 1.0, which counted in batches, as one of today."""

        def by_owner(states: list[torch.Tensor]) -> tuple[list[RandomState], RandomState]:
            of = {id(one): kept for one, kept in zip(self._generators, states, strict=False)}
            own = self._sources.own()
            generators = self._sources.generators
            return (
                [of.get(id(one), now) for one, now in zip(generators, own, strict=True)],
                of.get(id(self._loaders_generator)),
            )

        generators, loaders = by_owner(state["generators"])
        now = {
            **self.state_dict(0),
            "order_seed": state["order_seed"],
            "generators": generators,
            "loaders_generator": loaders,
        }
        begun = state["begun"]
        if begun is None:
            return {**now, "plan": None}
        num_ranks, unit = state.get("read_by", [self._num_ranks, self.unit])
        spans = state.get("spans", [])
        order_seed, epoch = begun.get("drawn_by", (state["order_seed"], self._epoch))
        plan = Plan(
            epoch=self._epoch if order_seed is None else epoch,
            turn=0,
            seed=begun["seed"],
            order_seed=order_seed,
            salts=self._salts,
            states={"rng": begun["rng"], "generators": by_owner(begun["generators"])[0]},
            num_ranks=1 if order_seed is None else num_ranks,
            unit=unit,
            start=sum(ranks * size * batches for ranks, size, batches in spans),
            first=state.get("from", sum(batches for *_, batches in spans)),
        )
        return {
            **now,
            "plan": plan.state_dict(),
            "cursor": plan.cursor(counted),
            "num_ranks": num_ranks,
        }

    # ---- reading ----

    def rest(self, loader: Loaders) -> Iterator[Batch]:
        """Begin to read the rest of the epoch for which `go_on` was called."""
        own = self._loaders_generator
        before = None if own is None else own.get_state()
        batches = begin_reading(loader)
        if own is not None and before is not None:
            own.set_state(before)  # to begin draws a seed
        return batches

    def begin_anew(self) -> None:
        """Let the next reading be a new one, whatever `go_on` told."""
        self.goes_on = False
        self.begins_at = 0

    def __iter__(self) -> Iterator[Index]:
        # What is below runs when the first index is asked for. A loader with workers calls iter()
        # twice and reads from the second.
        number = self.begins_at
        is_new = not self.goes_on or self.plan is None
        if is_new:
            self.plan = self._new_plan()
        plan = self.plan
        assert plan is not None
        self.begin_anew()
        self.total = None
        drawn = self._draw(plan, number, is_new)
        if self._is_counted(plan):
            # not asked for one more than there are: RandomSampler would draw from its generator
            # once more, and the next epoch would have another order than a plain loop's
            self.total = len(self.sampler)
            drawn = islice(drawn, max(0, self.total - number))
        entry = next(drawn, END)
        if entry is END:
            self.total = number
        while entry is not END:
            following = next(drawn, END)  # one ahead: so the last is known as such
            if following is END:
                self.total = number + 1
            yield _seeded(entry, rng.mix(plan.seed, number)) if self._seeds_workers else entry
            entry = following
            number += 1

    def _is_counted(self, plan: Plan) -> bool:
        """Tell whether a plan draws straight from a sampler that has as many as it says."""
        is_whole = plan.order_seed is None and not plan.start
        return is_whole and is_torchs_own(self.sampler)

    def _new_plan(self) -> Plan:
        turn = self._turn
        self._turn += 1
        sharded = self._sharded
        return Plan(
            epoch=self._epoch,
            turn=turn,
            seed=rng.mix(self._seed, self._epoch, turn, self._rank, self._number),
            order_seed=None if sharded is None else sharded.seed,
            salts=self._salts,
            states=self._sources.state() if sharded is None else None,
            num_ranks=self.dealt_to,
            unit=self.unit,
        )

    def _draw(self, plan: Plan, number: int, is_new: bool) -> Iterator[Index]:
        """Return the batches of this rank from one of them on."""
        if plan.order_seed is not None or plan.start:
            return islice(self._batches(self._share(plan)), number - plan.first, None)
        if not is_torchs_own(self.sampler):
            begin = None if is_new else partial(self._sources.restore, plan.states)
            # piece by piece, since it may look at what training has come to
            return islice(Stream(self.sampler, self._sources, 1, begin), number, None)
        if is_new:
            # not from its beginning where a checkpoint, such as Lightning's, tells only the batch
            return islice(iter(self.sampler), number, None)
        with rng.isolated():
            self._sources.restore(plan.states)
            drawn: Iterator[object] = iter(self.sampler)
            for _ in range(number):
                next(drawn, None)
        return drawn

    def _share(self, plan: Plan) -> Iterator[Index]:
        """Return this rank's share of the indices after the start of a plan."""
        if plan.order_seed is not None:
            order = seeded_order(
                self._source,
                self._sources,
                plan.salts,
                order_number(plan.order_seed, plan.epoch, plan.turn),
            )
        else:
            begin = partial(self._sources.restore, plan.states)
            order = Stream(self._source, self._sources, piece_of(self._source), begin)
        rest = order[plan.start :] if isinstance(order, list) else islice(order, plan.start, None)
        mode = "train" if self._sharded is None else self._sharded.mode
        return deal(rest, self._rank, plan.num_ranks, mode)

    def _batches(self, indices: Iterator[Index]) -> Iterator[Index]:
        if type(self.sampler) is not BatchSampler:
            return indices
        return iter(BatchSampler(indices, self.sampler.batch_size, self.sampler.drop_last))


def _seeded(indices: object, seed: int) -> object:
    if isinstance(indices, int):
        one = SeededIndex(indices)
        one.seed = seed
        return one
    if isinstance(indices, (list, tuple)):
        several = SeededBatch(indices)
        several.seed = seed
        return several
    return indices


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
        fetch: Callable[[_MapDatasetFetcher, object], object] = _MapDatasetFetcher.fetch

        def seeded_fetch(fetcher: _MapDatasetFetcher, indices: object) -> object:
            if isinstance(indices, (SeededBatch, SeededIndex)):
                rng.seed(indices.seed)
            return fetch(fetcher, indices)

        # Of this worker process, which does nothing else.
        _MapDatasetFetcher.fetch = seeded_fetch  # type: ignore[method-assign]


def planned(loader: Loaders, rank: int, num_ranks: int, number: int, seed: int) -> object:
    """Return a copy of a DataLoader that reads by plans; other loaders as they are.

    The loader is the `number`-th of its stage.
    """
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or has_state(loader)
    ):
        return loader
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    changed = copied(loader)
    # DataLoader forbids to set these attributes after construction; going through __dict__ spares
    # it a second construction
    changed.__dict__[name] = PlannedSampler(
        getattr(loader, name), loader, rank, num_ranks, number, seed
    )
    if loader.num_workers > 0:
        changed.__dict__["worker_init_fn"] = SeedingWorkers(loader.worker_init_fn)
    return changed


def plan_of(loader: Loaders) -> PlannedSampler | PositionedLoader | None:
    """Return the sampler or loader that plans the reading of `loader`, None if there is none."""
    if isinstance(loader, PositionedLoader):
        return loader
    for name in ("batch_sampler", "sampler"):
        if isinstance(found := getattr(loader, name, None), PlannedSampler):
            return found
    return None


def keeper_of(loader: Loaders) -> Keeper | None:
    """Return the object that keeps its own place: the loader, or its data set.

    The data set has to be iterable and read in this process. None if neither keeps its place.
    """
    if isinstance(loader, PositionedLoader):
        return None
    if has_state(loader):
        return loader
    own = (
        getattr(loader, "dataset", None)
        if isinstance(loader, DataLoader) and loader.num_workers == 0
        else None
    )
    return own if isinstance(own, IterableDataset) and has_state(own) else None


def has_state(data: object) -> TypeGuard[Keeper]:
    """Tell whether a loader or data set keeps its place, as torchdata's StatefulDataLoader does."""
    return callable(getattr(data, "state_dict", None)) and callable(
        getattr(data, "load_state_dict", None)
    )


def set_epoch(loader: Loaders, epoch: int) -> None:
    """Tell a loader of a Ray Dataset, or the samplers of `loader`, which epoch begins."""
    if isinstance(loader, RayDataLoader):
        loader.set_epoch(epoch)
    elif (plan := plan_of(loader)) is not None:
        plan.set_epoch(epoch)
    else:
        tell_epoch(getattr(loader, "sampler", None), epoch)
        tell_epoch(getattr(loader, "batch_sampler", None), epoch)
