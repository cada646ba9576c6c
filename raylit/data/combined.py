"""CombinedLoader: several loaders, in any nesting of lists and dicts, read as one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch.utils._pytree import tree_flatten, tree_unflatten

from raylit.data.sampling import resumable
from raylit.data.sharding import Even
from raylit.errors import ConfigError
from raylit.runtime.messages import warn

MODES = ("min_size", "max_size_cycle", "max_size", "sequential")
Item = tuple[Any, int, int]  # batch, number of the batch, number of the loader


def length_of(iterable: Any) -> float:
    """Return how many batches `iterable` has, infinity if it cannot tell."""
    try:
        return len(iterable)
    except (TypeError, NotImplementedError):
        return float("inf")


class CombinedLoader:
    """Reads several loaders together or one after the other.

    Args:
        iterables: loaders, in any nesting of lists, tuples and dicts; batches come in the same
            nesting.
        mode: `min_size` stops with the shortest, `max_size_cycle` begins shorter ones anew until
            the longest has ended, `max_size` gives None for those that have ended, `sequential`
            reads one after the other and gives batches of one loader at a time.

    Iterating gives (batch, batch_idx, dataloader_idx).

    Example:
        >>> loader = CombinedLoader({"a": range(4), "b": range(2)}, mode="max_size_cycle")
        >>> [batch for batch, _, _ in loader][2]
        {'a': 2, 'b': 0}
    """

    def __init__(self, iterables: Any, mode: str = "min_size") -> None:
        if mode not in MODES:
            raise ConfigError(
                f"CombinedLoader(mode={mode!r}) is not known. Use one of: {', '.join(MODES)}."
            )
        self._iterables = iterables
        self._flattened, self._spec = tree_flatten(iterables, is_leaf=_is_list_of_batches)
        self.readers: list[Any] = self._flattened
        self._mode = mode
        self._limits: list[float] | None = None
        self.even: Even | None = None
        self._start = 0
        self._restored: set[int] = set()
        self._held: dict[
            int, dict[str, Any]
        ] = {}  # states of before the batch that was read ahead, and what `even` said then
        self._held_passed: int | None = None
        # by loader, on the rank with the most; what ranks decide together goes by these
        self.most: list[float] | None = None
        self.is_last = False
        self._own_limits: list[float] | None = (
            None  # while an epoch is read that other ranks began, which has another length
        )
        self._own_even: Even | None = None  # likewise
        self.is_plain = len(self._flattened) == 1 and self._flattened[0] is iterables

    @property
    def iterables(self) -> Any:
        """The loaders as they were given."""
        return self._iterables

    @property
    def flattened(self) -> list[Any]:
        """The loaders as a flat list; may be set."""
        return self._flattened

    @flattened.setter
    def flattened(self, loaders: list[Any]) -> None:
        if len(loaders) != len(self._flattened):
            raise ConfigError(
                f"CombinedLoader holds {len(self._flattened)} loaders, but {len(loaders)} were"
                " given."
            )
        self._flattened = self.readers = loaders
        self._iterables = tree_unflatten(loaders, self._spec)

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
        lengths = self.lengths()
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

    def __iter__(self) -> Iterator[Item]:
        """Begin an iteration of every loader now, not at the first batch.

        Workers start early and random seeds are drawn in a known order.
        """
        self._held = {}
        self._held_passed = None
        if self.even is None:
            return self._begin()
        index = self._start
        own = self._own_number()
        if not index:
            self.even.passed = 0
        elif (
            not self.even.passed and index > own
        ):  # how far the data was read is not known: assume that it was read in whole passes
            self.even.passed = int((index - 1) // own * own)
        self._start -= self.even.passed
        return self.even.batches(self._begin(), self._begin, index)

    def _begin(self) -> Iterator[Item]:
        if not self._flattened:
            return iter(())
        if self._start:
            return self._rest()
        for keeper in map(resumable.keeper_of, self.readers):
            if isinstance(keeper, resumable.ResumableSampler):
                keeper.skip = None
        if self._mode == "sequential":
            limits = self.limits or [float("inf")] * len(self._flattened)
            first = next((number for number, limit in enumerate(limits) if limit > 0), None)
            return (
                iter(())
                if first is None
                else _read_sequential(self, first, iter(self.readers[first]), limits)
            )
        return _READERS[self._mode](self, [iter(loader) for loader in self.readers])

    # ---- in the middle of an epoch ----

    def ahead(self, items: Iterator[Item]) -> Iterator[Item]:
        """Read one batch ahead, so that `is_last` tells of each batch whether it is the last.

        `states` stays that of before.
        """
        keepers = {
            number: keeper
            for number, one in enumerate(self.readers)
            if resumable.has_state(keeper := resumable.keeper_of(one))
        }
        item = next(items, None)
        while item is not None:
            self._held_passed = None if self.even is None else self.even.passed
            self._held = {
                number: copy.deepcopy(keeper.state_dict()) for number, keeper in keepers.items()
            }
            following = next(items, None)
            self.is_last = following is None
            yield item
            item = following

    def states(self) -> list[dict[str, Any]]:
        """Return what `go_on` takes.

        Of each loader what it needs to go on from where it is, as plain data.
        """
        keepers = [resumable.keeper_of(loader) for loader in self.readers]
        states = [
            (
                self._held[number]
                if number in self._held
                else {}
                if keeper is None
                else keeper.state_dict()
            )
            for number, keeper in enumerate(keepers)
        ]
        if self.even is None:
            return states
        return [
            *states,
            {"passed": self.even.passed if self._held_passed is None else self._held_passed},
        ]

    def go_on(self, batch: int, states: list[dict[str, Any]], counted: int | None = None) -> None:
        """Let the next iteration begin at number `batch`.

        Args:
            batch: batches of the epoch that were read before; 0 if none were.
            states: what `states` returned then; empty if it is not known, which is exact only for
                data that is read in order.
            counted: `batch` as those counted who read them, if they were another number of ranks
                and it was converted.
        """
        self._start = batch
        if self.even is not None and batch and len(states) > len(self.readers):
            self.even.passed = states[-1]["passed"]
        for number, (loader, state) in enumerate(zip(self.readers, states, strict=False)):
            keeper = resumable.keeper_of(loader)
            is_sampler = isinstance(keeper, resumable.ResumableSampler)
            if (
                keeper is None or not state or not (batch or is_sampler)
            ):  # between epochs, data's own state is that of the one which ended
                continue
            keeper.load_state_dict(state)
            self._restored.add(id(loader))
            if (
                batch
                and is_sampler
                and keeper.share_rest(state, batch, batch if counted is None else counted)
                and self.limits
            ):
                self._own_limits = self._own_limits or list(self.limits)
                if self.limits[number] == length_of(
                    self._flattened[number]
                ):  # no limit: all that is left
                    self.limits[number] = length_of(loader)
        if self._own_limits is not None and self.even is not None:
            self._own_even, self.even = self.even, replace(self.even, number=self._own_number())

    def begin_anew(self) -> None:
        """Let the epoch that others began be over.

        The next one has the length of this number of ranks again.
        """
        self.limits = self._own_limits
        self._own_limits = None
        self.even = self._own_even or self.even
        self._own_even = None
        for keeper in map(resumable.keeper_of, self.readers):
            if isinstance(keeper, resumable.ResumableSampler):
                keeper.begin_anew()

    @property
    def was_begun_by_others(self) -> bool:
        """Whether the epoch that is read was begun by another number of ranks, or with other batches, and so has another length."""
        return self._own_limits is not None

    def _rest(self) -> Iterator[Item]:
        start = self._start
        self._start = 0
        lengths = self.lengths()
        taken = [self._taken(length, start) for length in lengths]
        iterators: list[Iterator[Any]] = []
        for loader, length, number in zip(self.readers, lengths, taken, strict=True):
            keeper = resumable.keeper_of(loader)
            if isinstance(keeper, resumable.ResumableSampler):
                iterators.append(iter(()) if number >= length else keeper.rest(loader, number))
                continue
            iterators.append(iter(loader))
            if id(loader) not in self._restored:
                _drop(iterators[-1], number, type(loader).__name__)
        return _READERS[self._mode](self, iterators, start, taken)

    def _taken(self, length: float, start: int) -> int:
        """Return how many batches of the pass that it is in a loader has given, once `start` batches of all were read."""
        if self._mode == "max_size_cycle" and start > length:
            return int((start - 1) % length) + 1
        return int(min(start, length))

    def join(self, batches: list[Any]) -> Any:
        """Put one batch of each loader into the nesting of the loaders."""
        return tree_unflatten(batches, self._spec)


def _drop(iterator: Iterator[Any], number: int, name: str) -> None:
    """Read `number` batches that were read before, of a loader that cannot tell where it is."""
    warn(
        f"The {name} keeps no state: its first {number} batches are read again and dropped. Give"
        " it, or an iterable data set that is read without worker processes, state_dict and"
        " load_state_dict, as torchdata's StatefulDataLoader has them, to go on at once and"
        " exactly."
    )
    for _ in range(number):
        next(iterator, None)


def _read_single(
    iterator: Iterator[Any], limit: float, join: Callable[[list[Any]], Any] | None, index: int = 0
) -> Iterator[Item]:
    """The common case, one loader, at the price of a counter.

    A batch beyond the limit is not even fetched.
    """
    while index < limit:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        yield (batch if join is None else join([batch])), index, 0
        index += 1


def _read_min_size(
    loader: CombinedLoader,
    iterators: list[Iterator[Any]],
    index: int = 0,
    taken: list[int] | None = None,
) -> Iterator[Item]:
    limit = min(loader.limits or [float("inf")])
    while index < limit:
        try:
            batches = [next(iterator) for iterator in iterators]
        except StopIteration:
            return
        yield loader.join(batches), index, 0
        index += 1


def _read_max_size(
    loader: CombinedLoader,
    iterators: list[Iterator[Any]],
    index: int = 0,
    taken: list[int] | None = None,
    cycle: bool = False,
) -> Iterator[Item]:
    limits = loader.limits or [float("inf")] * len(iterators)
    taken = taken or [0] * len(iterators)
    ended = [index > length for length in loader.lengths()]
    while True:
        batches: list[Any] = [None] * len(iterators)
        for i in range(len(iterators)):
            if ended[i] and not cycle:
                continue
            batches[i], has_batch = _next_within(iterators[i], taken[i], limits[i])
            if not has_batch:
                ended[i] = True
                if all(ended):
                    return
                if cycle:
                    iterators[i], taken[i] = iter(loader.readers[i]), 0
                    batches[i], has_batch = _next_within(iterators[i], 0, limits[i])
                    if not has_batch:
                        return
            taken[i] += 1
        yield loader.join(batches), index, 0
        index += 1


def _next_within(iterator: Iterator[Any], taken: int, limit: float) -> tuple[Any, bool]:
    if taken >= limit:
        return None, False
    try:
        return next(iterator), True
    except StopIteration:
        return None, False


def _read_max_size_cycle(
    loader: CombinedLoader,
    iterators: list[Iterator[Any]],
    index: int = 0,
    taken: list[int] | None = None,
) -> Iterator[Item]:
    if len(iterators) == 1:
        return _read_single(
            iterators[0],
            (loader.limits or [float("inf")])[0],
            None if loader.is_plain else loader.join,
            index,
        )
    return _read_max_size(loader, iterators, index, taken, cycle=True)


def _read_sequential(
    loader: CombinedLoader, first: int, iterator: Iterator[Any], limits: list[float]
) -> Iterator[Item]:
    for number in range(first, len(limits)):
        if limits[number] > 0:
            iterator = iterator if number == first else iter(loader.readers[number])
            for batch, index, _ in _read_single(iterator, limits[number], None):
                yield batch, index, number


_READERS: dict[str, Callable[..., Iterator[Item]]] = {
    "min_size": _read_min_size,
    "max_size_cycle": _read_max_size_cycle,
    "max_size": _read_max_size,
}


def _is_list_of_batches(value: Any) -> bool:
    """Tell whether a list holds numbers or words.

    Then they are batches, and it is a loader rather than a list of loaders.
    """
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, (int, float, str)) for item in value)
    )


def is_iterable(value: Any) -> bool:
    """Tell whether `value` can be read as a loader, without starting its workers."""
    return isinstance(value, Iterable) or hasattr(value, "__getitem__")
