"""CombinedLoader: several loaders, in any nesting of lists and dicts, read as one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from raylit.data.index_once import index_once
from raylit.data.positioned import PositionedLoader
from raylit.data.sampling.plan import PlannedSampler, keeper_of, plan_of
from raylit.data.sharding import Even
from raylit.data.worker_processes import begin_reading
from raylit.errors import ConfigError
from raylit.runtime import rng
from raylit.runtime.aliases import Batch, Loaders, StateDict
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from fractions import Fraction

MODES = ("min_size", "max_size_cycle", "max_size", "sequential")
Item = tuple[Batch, int, int]  # batch, number of the batch, number of the loader


def length_of(iterable: Loaders) -> float:
    """Return how many batches `iterable` has, infinity if it cannot tell."""
    try:
        return len(iterable)
    except (TypeError, NotImplementedError):
        return float("inf")


@dataclass(frozen=True)
class _Held:
    """Where the loaders stood before a batch was read ahead.

    Attributes:
        keepers: the state of each loader that keeps its own place, by its number.
        passed: of this epoch, the batches of this rank before it began its data again.
        drawn_from: the random states, if something is read in this process.
    """

    keepers: dict[int, StateDict]
    passed: int | None
    drawn_from: tuple[object, ...] | None


class CombinedLoader:
    """Reads several loaders together or one after the other.

    Args:
        iterables: loaders, in any nesting of lists, tuples and dicts; batches come in the same
            nesting.
        mode: `min_size` stops with the shortest, `max_size_cycle` begins shorter ones anew until
            the longest has ended, `max_size` gives None for those that have ended, `sequential`
            reads one after the other and gives batches of one loader at a time.

    Iterating gives (batch, batch_idx, dataloader_idx).

    Attributes:
        plans: what plans the reading of each of `readers`, None where nothing does.
        limit_of: how many batches of a loader with so many an epoch counts; None: what `limits`
            says.
        watch: a context around the fetching of each batch, for a profiler, or None.
        is_last: whether the batch that was given last is the epoch's last.
        even: how the ranks come to the same end of an epoch; None: they have equally many batches.

    Example:
        >>> loader = CombinedLoader({"a": range(4), "b": range(2)}, mode="max_size_cycle")
        >>> [batch for batch, _, _ in loader][2]
        {'a': 2, 'b': 0}
    """

    def __init__(self, iterables: Loaders, mode: str = "min_size") -> None:
        if mode not in MODES:
            raise ConfigError(
                f"Unsupported mode {mode!r}, please select one of: {list(MODES)}. "
                f"CombinedLoader(mode={mode!r}) is not known. Use one of: {', '.join(MODES)}."
            )
        self._iterables = iterables
        self._flattened, self._spec = tree_flatten(iterables, is_leaf=_is_list_of_batches)
        self.readers = [index_once(loader) for loader in self._flattened]
        self.is_plain = len(self._flattened) == 1 and self._flattened[0] is iterables
        self._mode = mode
        self._limits: list[float] | None = None
        self.limit_of: Callable[[float], float] | None = None
        self.watch: Callable[[], AbstractContextManager[object]] | None = None
        # by loader, on the rank with the most; what ranks decide together goes by these
        self.most: list[float] | None = None
        self.is_last = False
        self.even: Even | None = None
        self._own_even: Even | None = None  # while an epoch is read that other ranks have begun
        self._start = 0
        self._told: list[StateDict] = []  # of the loaders, where the next iteration begins
        self._drawn_from: dict[str, object] | None = None  # what its first batch was, if read ahead
        # random states, of loaders without a place: those of the process, and of its generator
        self._begun: dict[int, tuple[tuple[object, ...], Tensor | None]] = {}
        self._given = 0
        # Before the batch that was given last and, where one is read ahead, after it
        self._held: list[_Held] = []
        self._alive: list[_MultiProcessingDataLoaderIter] = []

    @property
    def iterables(self) -> Loaders:
        """The loaders as they were given."""
        return self._iterables

    @property
    def flattened(self) -> list[Loaders]:
        """The loaders as a flat list; may be set."""
        return self._flattened

    @flattened.setter
    def flattened(self, loaders: list[object]) -> None:
        if len(loaders) != len(self._flattened):
            raise ConfigError(
                f"CombinedLoader holds {len(self._flattened)} loaders, but {len(loaders)} were"
                " given."
            )
        self._flattened = loaders
        self.readers = [index_once(loader) for loader in loaders]
        self._iterables = tree_unflatten(loaders, self._spec)

    @property
    def readers(self) -> list[Loaders]:
        """The loaders as this rank reads them in training; may be set, not changed in place."""
        return self._readers

    @readers.setter
    def readers(self, loaders: list[Loaders]) -> None:
        self._readers = loaders
        # found once: they are asked for several times in an epoch, which may be one batch long
        self.plans = [plan_of(loader) for loader in loaders]

    @property
    def limits(self) -> list[float] | None:
        """How many batches are read of each loader at most, or None.

        May be set, a single number for all of them.
        """
        return self._limits

    @limits.setter
    def limits(self, limits: float | list[float] | None) -> None:
        limits = [limits] * len(self._flattened) if isinstance(limits, (int, float)) else limits
        if limits is not None and len(limits) != len(self._flattened):
            raise ConfigError(
                f"CombinedLoader holds {len(self._flattened)} loaders, but {len(limits)} limits"
                " were given."
            )
        self._limits = limits

    @property
    def mode(self) -> str:
        """How the loaders are combined."""
        return self._mode

    def lengths(self) -> list[float]:
        """Return the number of batches of each loader, within `limits`."""
        limits = self.limits or [float("inf")] * len(self._flattened)
        return [
            min(length_of(loader), limit)
            for loader, limit in zip(self.readers, limits, strict=True)
        ]

    def num_batches(self) -> float:
        """Return how many batches an iteration gives, infinity if that cannot be told."""
        if self.even is not None:
            return self.even.number
        return self._own_number()

    def _own_number(self) -> float:
        return self._combined(self.lengths())

    def _combined(self, lengths: list[float]) -> float:
        combine: Callable[..., float] = {"min_size": min, "sequential": sum}.get(self._mode, max)  # type: ignore[assignment]
        return combine(lengths) if lengths else 0

    def __len__(self) -> int:
        """Return how many batches an iteration gives.

        Raises:
            TypeError: a loader has no length.
        """
        number = self.num_batches()
        if number == float("inf"):
            raise TypeError("A loader of this CombinedLoader has no length.")
        return int(number)

    @property
    def reads_ahead(self) -> bool:
        """Whether a batch has to be read to know that the one before it is not the last.

        A length is believed, which costs nothing. If the data ends before it, the loop then makes
        up for the work due after a last batch.
        """
        if self.even is not None:
            return self.even.agrees or self.even.number == float("inf")
        return any(
            plan is None and length_of(one) == float("inf")
            for one, plan in zip(self.readers, self.plans, strict=True)
        )

    def recount(self) -> None:
        """Find out how many batches the epoch has that comes: samplers may have more or fewer."""
        if self.limit_of is not None:
            # How many of the longest, or of the shortest; a shorter one is read to its own end
            lengths = [length_of(one) for one in self.readers]
            self.limits = self._combined([min(n, self.limit_of(n)) for n in lengths])
        if self._own_even is not None:
            self.even = self._own_even
            self._own_even = None
        if self.even is not None and any(
            plan is not None and plan.is_others for plan in self.plans
        ):
            self._own_even = self.even
            self.even = replace(self.even, number=self._own_number())

    def num_batches_of(self, num_ranks: int, factor: Fraction) -> float:
        """Return how many batches an iteration gives if there are `num_ranks` ranks.

        Args:
            num_ranks: how many.
            factor: so many times the ranks that there are.
        """
        limits = self.limits or [float("inf")] * len(self.readers)
        lengths: list[float] = []
        for loader, plan, limit in zip(self.readers, self.plans, limits, strict=True):
            most = length = length_of(loader)
            if plan is not None and length != float("inf"):
                most = plan.length_for(num_ranks)
            elif length != float("inf"):
                most = int(length / factor)
            lengths.append(min(most, int(limit / factor)) if limit < length else most)
        return self._combined(lengths)

    def __iter__(self) -> Iterator[Item]:
        """Begin an iteration of every loader now, not at the first batch.

        Workers start early and random seeds are drawn in a known order.
        """
        self._held = []
        self.is_last = False
        items = self._begin() if self.even is None else self._begin_together(self.even)
        return items if self.watch is None else self._watched(self.watch, items)

    def _begin_together(self, even: Even) -> Iterator[Item]:
        index = self._start
        own = self._own_number()
        if not index:
            even.passed = 0
        elif not even.passed and index > own:
            # How far the data was read is not known: assume that it was read in whole passes
            even.passed = int((index - 1) // own * own)
        self._start -= even.passed
        return self._together(even, even.batches(self._begin(), self._begin, index))

    def _together(self, even: Even, items: Iterator[Item]) -> Iterator[Item]:
        for item in items:
            self.is_last = item[1] + 1 >= even.number
            yield item

    def _watched(
        self, watch: Callable[[], AbstractContextManager[object]], items: Iterator[Item]
    ) -> Iterator[Item]:
        left = self.num_batches()
        while left > 0:
            with watch():
                item = next(items, None)
            if item is None:
                return
            yield item
            left -= 1

    def _begin(self) -> Iterator[Item]:
        if not self._flattened:
            return iter(())
        if self._start:
            return self._rest()
        for plan in self.plans:
            if plan is not None:
                plan.begin_anew()
        if self._mode == "sequential":
            limits = self.limits or [float("inf")] * len(self._flattened)
            first = next((number for number, limit in enumerate(limits) if limit > 0), None)
            return (
                iter(())
                if first is None
                else _read_sequential(self, first, self.begin(first), limits)
            )
        return _READERS[self._mode](self, [self.begin(i) for i in range(len(self.readers))])

    def begin(self, number: int) -> Iterator[Batch]:
        """Begin to read the loader of this number."""
        loader = self.readers[number]
        if self.plans[number] is None and not isinstance(loader, Sequence):
            generator = getattr(loader, "generator", None)
            own = None if generator is None else generator.get_state()
            # It takes some 77 us, most of it numpy's get_state: so not where a plan knows the
            # place, nor for a list, which draws nothing
            self._begun[number] = (rng.capture(), own)
        return self._noted(begin_reading(loader))

    def _noted(self, iterator: Iterator[object]) -> Iterator[object]:
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            # Without those of epochs that have ended, which would become more and more
            self._alive = [one for one in self._alive if any(one._workers_status)]
            self._alive.append(iterator)
        return iterator

    def close(self) -> None:
        """End the worker processes of the loaders, also those that are kept between epochs."""
        for iterator in self._alive:
            iterator._shutdown_workers()
        self._alive = []
        for loader in (*self.readers, *self._flattened):
            if isinstance(loader, DataLoader):
                # With persistent workers torch would go on with an iterator whose workers are gone
                loader._iterator = None

    # ---- in the middle of an epoch ----

    def resumable(self, items: Iterator[Item]) -> Iterator[Item]:
        """Return the batches, of which `states` tells also while one is trained on.

        A plan counts its batches and needs nothing for that.
        """
        if self.reads_ahead:
            return self._ahead(items)
        keeps_place = any(
            plan is None and keeper_of(one) is not None
            for one, plan in zip(self.readers, self.plans, strict=True)
        )
        return self._holding(items) if keeps_place else items

    def _ahead(self, items: Iterator[Item]) -> Iterator[Item]:
        """Read one batch ahead, so that `is_last` tells of each batch whether it is the last.

        `states` stays that of before.
        """
        before = self._hold()
        item = self._next_as_drawn(items)
        while item is not None:
            after = self._hold()
            following = next(items, None)
            self.is_last = following is None
            self._held = [before, after]
            self._given = item[1] + 1
            yield item
            before = after
            item = following

    def _holding(self, items: Iterator[Item]) -> Iterator[Item]:
        """Remember where data that keeps its own place stood before the batch that is trained on.

        By then it stands behind that batch, which comes again if the fit ends within it.
        """
        before = self._hold()
        item = self._next_as_drawn(items)
        while item is not None:
            self._held = [before]
            self._given = item[1] + 1
            yield item
            before = self._hold()
            item = next(items, None)

    def _next_as_drawn(self, items: Iterator[Item]) -> Item | None:
        """Return the first batch, with the random numbers of when it was read before, if it was."""
        drawn_from = self._drawn_from
        self._drawn_from = None
        if drawn_from is None:
            return next(items, None)
        with rng.isolated(cuda=False):
            rng.restore(drawn_from)
            return next(items, None)

    def _hold(self) -> _Held:
        keepers = {number: keeper_of(one) for number, one in enumerate(self.readers)}
        draws = any(
            plan is None and not (isinstance(one, DataLoader) and one.num_workers > 0)
            for one, plan in zip(self.readers, self.plans, strict=True)
        )
        return _Held(
            {
                number: copy.deepcopy(keeper.state_dict())
                for number, keeper in keepers.items()
                if keeper is not None
            },
            None if self.even is None else self.even.passed,
            rng.capture(cuda=False) if draws else None,
        )

    def states(self, batch: int | None) -> list[StateDict]:
        """Return the argument of `go_on`: the state that each loader needs to go on, as plain data.

        Args:
            batch: batches of the epoch that were trained on; None between epochs.
        """
        # A checkpoint saved while a batch is trained on does not count it: it comes again
        is_within = batch is not None and batch < self._given and bool(self._held)
        held = self._held[0] if is_within else next(iter(self._held[1:]), None)
        passed = None if self.even is None else self.even.passed
        if held is not None:
            passed = held.passed
        own = max(0, (batch or 0) - (passed or 0))
        states: list[dict[str, object]] = []
        for number, (loader, plan, length) in enumerate(
            zip(self.readers, self.plans, self.lengths(), strict=True)
        ):
            keeper = keeper_of(loader)
            if plan is not None:
                states.append(plan.state_dict(self._taken(length, own)))
            elif keeper is None:
                states.append({"begun": self._states_at_begin(number)})
            else:
                states.append(keeper.state_dict() if held is None else held.keepers[number])
        drawn_from = None if held is None else held.drawn_from
        return [
            *states,
            {
                "passed": passed,
                "ahead": None if drawn_from is None else rng.plain(drawn_from),
                "is_within": is_within,
            },
        ]

    def _states_at_begin(self, number: int) -> dict[str, object] | None:
        if number not in self._begun:
            return None
        captured, own = self._begun[number]
        return {"rng": rng.plain(captured), "generator": own}

    def go_on(self, batch: int, states: list[StateDict], counted: int | None = None) -> None:
        """Let the next iteration begin at number `batch`.

        Args:
            batch: batches of the epoch that were read before; 0 if none were.
            states: what `states` returned then; empty if it is not known, which is exact only for
                data that is read in order.
            counted: `batch` as those counted who read them, if they were another number of ranks
                and it was converted.
        """
        self._start = batch
        counted = batch if counted is None else counted
        passed = 0
        # Between epochs, data's own state is that of the one which ended
        has_begun = batch > 0
        if len(states) > len(self.readers):
            has_begun = has_begun or bool(states[-1].get("is_within"))
        if has_begun and len(states) > len(self.readers):
            passed = states[-1].get("passed") or 0
            self._drawn_from = states[-1].get("ahead")
            if self.even is not None:
                self.even.passed = passed
        self._told = [*states[: len(self.readers)], *[{}] * (len(self.readers) - len(states))]
        for loader, plan, state in zip(self.readers, self.plans, states, strict=False):
            keeper = keeper_of(loader)
            if plan is not None and state:
                own = batch - passed
                if "cursor" not in state and counted == batch:  # of the format before
                    own = self._taken(length_of(loader), own)
                    plan.go_on(state, own, own)
                else:
                    plan.go_on(state, own, counted - passed)
            elif keeper is not None and state and has_begun:
                keeper.load_state_dict(state)
        self.recount()

    def _rest(self) -> Iterator[Item]:
        start = self._start
        self._start = 0
        states = self._told
        taken: list[int] = []
        iterators: list[Iterator[object]] = []
        for loader, plan, length, state in zip(
            self.readers, self.plans, self.lengths(), states, strict=True
        ):
            number = self._taken(length, start) if plan is None else plan.begins_at
            if plan is not None and not plan.goes_on:  # nothing is known of it: in the data's order
                number = plan.begins_at = self._taken(length, start)
            taken.append(number)
            if plan is not None and number >= length:
                plan.begin_anew()
                iterators.append(iter(()))
            elif plan is not None:
                iterators.append(plan.rest(loader))
            elif keeper_of(loader) is not None and state:
                iterators.append(begin_reading(loader))
            else:
                iterators.append(_again(loader, number, state.get("begun")))
            self._noted(iterators[-1])
        return _READERS[self._mode](self, iterators, start, taken)

    def _taken(self, length: float, start: int) -> int:
        """Return how many batches a loader has given of the pass that it is in.

        By then `start` batches of all loaders were read.
        """
        if self._mode == "max_size_cycle" and start > length:
            # From 1 to the length, not from 0: a pass ends when the next one gives its first batch
            return int((start - 1) % length) + 1
        return int(min(start, length))

    def join(self, batches: list[object]) -> Batch:
        """Put one batch of each loader into the nesting of the loaders."""
        return tree_unflatten(batches, self._spec)


def _again(loader: Loaders, number: int, begun: StateDict | None) -> Iterator[object]:
    """Begin anew a loader that cannot tell where it is, and drop `number` batches read before.

    Its random numbers are drawn as before, from the random states `begun`.
    """
    warn(
        f"The {type(loader).__name__} keeps no state: its first {number} batches are read again and"
        " dropped. Give it, or an iterable data set that is read without worker processes,"
        " state_dict and load_state_dict, as torchdata's StatefulDataLoader has them, to go on at"
        " once and exactly."
    )
    with rng.isolated():
        if begun is not None:
            rng.restore(begun["rng"])
            if begun["generator"] is not None:
                loader.generator.set_state(begun["generator"])
        iterator = begin_reading(loader)
        for _ in range(number):
            next(iterator, None)
    return iterator


def _read_single(
    loader: CombinedLoader,
    iterator: Iterator[object],
    limit: float,
    join: Callable[[list[object]], object] | None,
    index: int = 0,
    plan: PlannedSampler | PositionedLoader | None = None,
) -> Iterator[Item]:
    """The common case, one loader, at the price of a counter.

    A batch beyond the limit is not even fetched.
    """
    while index < limit:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        index += 1
        loader.is_last = index == limit or (plan is not None and plan.total == index)
        yield (batch if join is None else join([batch])), index - 1, 0


def _read_min_size(
    loader: CombinedLoader,
    iterators: list[Iterator[object]],
    index: int = 0,
    taken: list[int] | None = None,
) -> Iterator[Item]:
    limit = min(loader.limits or [float("inf")])
    plans = [plan for plan in loader.plans if plan is not None]
    while index < limit:
        try:
            batches = [next(iterator) for iterator in iterators]
        except StopIteration:
            return
        index += 1
        loader.is_last = index == limit or any(plan.total == index for plan in plans)
        yield loader.join(batches), index - 1, 0


def _read_max_size(
    loader: CombinedLoader,
    iterators: list[Iterator[object]],
    index: int = 0,
    taken: list[int] | None = None,
    cycle: bool = False,
) -> Iterator[Item]:
    limits = loader.limits or [float("inf")] * len(iterators)
    plans = loader.plans
    taken = taken or [0] * len(iterators)
    lengths = loader.lengths()
    # One of which exactly all was read is found to have ended when it is asked once more
    ended = [index > length for length in lengths]
    was_read = [index >= length for length in lengths]  # whole, at least once
    while True:
        batches: list[object] = [None] * len(iterators)
        for i, plan in enumerate(plans):
            if ended[i] and not cycle:
                continue
            batches[i], has_batch = _next_within(iterators[i], taken[i], limits[i])
            if not has_batch:
                ended[i] = was_read[i] = True
                if all(ended):
                    return
                if cycle:
                    iterators[i] = loader.begin(i)
                    taken[i] = 0
                    # Data that is empty, or cannot be begun again, must not be begun for ever
                    batches[i], has_batch = _next_within(iterators[i], 0, limits[i])
                    if not has_batch:
                        return
            taken[i] += 1
            if taken[i] == limits[i] or (plan is not None and plan.total == taken[i]):
                was_read[i] = True
        loader.is_last = all(was_read)
        yield loader.join(batches), index, 0
        index += 1


def _next_within(iterator: Iterator[object], taken: int, limit: float) -> tuple[Batch, bool]:
    if taken >= limit:
        return None, False
    try:
        return next(iterator), True
    except StopIteration:
        return None, False


def _read_max_size_cycle(
    loader: CombinedLoader,
    iterators: list[Iterator[object]],
    index: int = 0,
    taken: list[int] | None = None,
) -> Iterator[Item]:
    if len(iterators) == 1:
        return _read_single(
            loader,
            iterators[0],
            (loader.limits or [float("inf")])[0],
            None if loader.is_plain else loader.join,
            index,
            loader.plans[0],
        )
    return _read_max_size(loader, iterators, index, taken, cycle=True)


def _read_sequential(
    loader: CombinedLoader, first: int, iterator: Iterator[object], limits: list[float]
) -> Iterator[Item]:
    for number in range(first, len(limits)):
        if limits[number] > 0:
            iterator = iterator if number == first else loader.begin(number)
            for batch, index, _ in _read_single(loader, iterator, limits[number], None):
                yield batch, index, number


_READERS: dict[str, Callable[..., Iterator[Item]]] = {
    "min_size": _read_min_size,
    "max_size_cycle": _read_max_size_cycle,
    "max_size": _read_max_size,
}


def _is_list_of_batches(value: object) -> bool:
    """Tell whether a list holds numbers or words.

    Then they are batches, and it is a loader rather than a list of loaders.
    """
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, (int, float, str)) for item in value)
    )


def is_iterable(value: object) -> bool:
    """Tell whether `value` can be read as a loader, without starting its workers."""
    return isinstance(value, Iterable) or hasattr(value, "__getitem__")
