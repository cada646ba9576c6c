"""All that a sampler may draw random numbers from, and drawing from it undisturbed.

Those are the generators of python, numpy and torch that belong to the process, and the generators
that samplers hold themselves.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from raylit.runtime import rng
from raylit.runtime.aliases import StateDict

# These draw at the first index only, or from a generator that nobody else has
TORCHS_OWN = (
    BatchSampler,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
PIECE = 1024  # indices drawn at once from a sampler that does not say how many it has

UserSampler: TypeAlias = Any  # a Sampler or BatchSampler, or an object with their methods
Index: TypeAlias = Any  # what a sampler gives: an int, another key, or a batch of them
RandomState: TypeAlias = Any  # of a generator, as its library gives it, or of several

if TYPE_CHECKING:
    Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


class Sources:
    """The sources of random numbers that the samplers of one loader draw from.

    Args:
        samplers: whose generators are meant; samplers that they are made of count too.
    """

    def __init__(self, *samplers: object) -> None:
        self.generators: list[Generator] = []
        seen: set[int] = set()
        for sampler in samplers:
            self._look_into(sampler, seen)

    def _look_into(self, owner: object, seen: set[int]) -> None:
        if id(owner) in seen or not hasattr(owner, "__dict__"):
            return
        seen.add(id(owner))
        for name, value in vars(owner).items():
            if _is_generator(value):
                if id(value) not in seen:
                    seen.add(id(value))
                    self.generators.append(value)
            elif "sampler" in name:
                self._look_into(value, seen)

    def own(self) -> list[RandomState]:
        """Return the states of the samplers' own generators, as plain data."""
        return [_state_of(generator) for generator in self.generators]

    def restore_own(self, states: list[RandomState]) -> None:
        """Restore the states of the samplers' own generators; with fewer of them, only theirs."""
        for generator, state in zip(self.generators, states, strict=False):
            _restore(generator, state)

    def state(self) -> StateDict:
        """Return the states of all of them, as plain data."""
        return {"rng": rng.state(), "generators": self.own()}

    def restore(self, states: StateDict) -> None:
        """Restore the random states from `state`."""
        rng.restore(states["rng"])
        self.restore_own(states["generators"])

    def seed(self, number: int, salts: list[int]) -> None:
        """Seed all of them.

        Args:
            number: 0 to 2**63 - 1.
            salts: one for each of the samplers' own generators, so that what the user seeded it
                with keeps counting.
        """
        rng.seed(number, accelerator=True)
        for generator, salt in zip(self.generators, salts, strict=True):
            _seed(generator, rng.mix(number, salt))

    def salts(self) -> list[int]:
        """Return a number for each of the samplers' own generators that stands for its state."""
        return [rng.mix(repr(_state_of(generator))) for generator in self.generators]

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Leave all of them as they are now, whatever is drawn in the block."""
        own = [_capture(generator) for generator in self.generators]
        with rng.isolated():
            try:
                yield
            finally:
                for generator, state in zip(self.generators, own, strict=True):
                    _revert(generator, state)


class Stream(Iterator[Index]):
    """Draws from a sampler with random states of its own.

    Whoever draws random numbers in between changes nothing in the order, and the order nothing in
    theirs.

    Args:
        sampler: gives indices or batches of them.
        sources: what it draws from.
        piece: how many are drawn at once.
        begin: brings the random states to those of the order's beginning; None: the first piece is
            drawn from the process's, as a loader would.
    """

    def __init__(
        self,
        sampler: Iterable[Index],
        sources: Sources,
        piece: int,
        begin: Callable[[], None] | None,
    ) -> None:
        self._sampler = sampler
        self._sources = sources
        self._piece = piece
        self._begin: Any = begin
        self._iterator: Iterator[object] | None = None
        self._states: list[RandomState] = []
        self._drawn: deque[object] = deque()

    def __next__(self) -> object:
        if not self._drawn:
            self._draw()
            if not self._drawn:
                raise StopIteration
        return self._drawn.popleft()

    def _draw(self) -> None:
        sources = self._sources
        if self._iterator is None and self._begin is None:
            self._read()
            return
        with sources.isolated():
            if self._iterator is None:
                self._begin()
            else:
                rng.revert(self._states[0])
                for generator, state in zip(sources.generators, self._states[1:], strict=True):
                    _revert(generator, state)
            self._read()

    def _read(self) -> None:
        if self._iterator is None:
            self._iterator = iter(self._sampler)
        self._drawn.extend(islice(self._iterator, self._piece))
        self._states = [rng.capture(), *map(_capture, self._sources.generators)]


def is_torchs_own(sampler: object) -> bool:
    """Tell whether a sampler is one of torch's, and the sampler within it too."""
    if type(sampler) is BatchSampler:
        return is_torchs_own(sampler.sampler)
    return type(sampler) in TORCHS_OWN or isinstance(sampler, (range, list, tuple))


def piece_of(sampler: UserSampler) -> int:
    """Return how many indices to draw at once: all, and one more to see that it was the last."""
    try:
        return len(sampler) + 1
    except (TypeError, NotImplementedError):
        return PIECE


def _is_generator(value: object) -> TypeGuard[Generator]:
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return isinstance(value, kinds)


def _capture(generator: Generator) -> RandomState:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state()
    return generator.getstate()


def _revert(generator: Generator, state: RandomState) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)


def _state_of(generator: Generator) -> RandomState:
    """Return a generator's state as plain data; arrays become lists."""
    return _listed(_capture(generator))


def _restore(generator: Generator, state: RandomState) -> None:
    if isinstance(generator, random.Random):
        version, words, gauss = state
        state = (version, tuple(words), gauss)
    elif isinstance(generator, np.random.Generator):
        state = _arrayed(state)
    _revert(generator, state)


def _listed(value: object) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _listed(one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_listed(one) for one in value)
    return value.item() if isinstance(value, np.generic) else value


def _arrayed(value: object) -> object:
    if isinstance(value, dict):
        return {key: _arrayed(one) for key, one in value.items()}
    return np.asarray(value, dtype=np.uint64) if isinstance(value, list) else value


def _seed(generator: Generator, number: int) -> None:
    if isinstance(generator, torch.Generator):
        generator.manual_seed(number)
    elif isinstance(generator, np.random.Generator):
        # numpy's Generator cannot be seeded once it is made
        generator.bit_generator.state = type(generator.bit_generator)(number).state
    elif isinstance(generator, np.random.RandomState):
        generator.seed(number % 2**32)
    else:
        generator.seed(number)
