"""Picks samples of a data set by a number, the same ones however the data lies on ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from raylit.runtime.batch import named_tensors, parts_of
from raylit.runtime.ranks import Ranks

Array: TypeAlias = np.ndarray

MOST_VALUES = 4096  # of a sample's tensor that its fingerprint is made of
FACTOR = 6364136223846793005  # Knuth's multiplier, MMIX; int64 wraps


@dataclass
class Sample:
    """One sample that was picked.

    Attributes:
        key: the number it was picked by.
        fingerprint: a number made of its content.
        values: its tensors, on the host, under the names that they have in the batch.
        texts: its strings, likewise.
    """

    key: float
    fingerprint: int
    values: dict[str, Array]
    texts: dict[str, str] = field(default_factory=dict)


@dataclass
class _Group:
    """The samples with the smallest keys so far, of those whose tensors have the same shapes."""

    keys: Tensor
    fingerprints: Tensor
    values: dict[str, Tensor]
    texts: dict[str, list[str]]


class Chosen:
    """The samples with the smallest keys; of equal ones, those with the smallest fingerprints.

    Until `gathered` all stays where it was computed, and no device is waited for, unless a sample
    has strings.

    Args:
        number: how many.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._groups: dict[object, _Group] = {}

    def offer(
        self,
        keys: Tensor,
        fingerprints: Tensor,
        values: Mapping[str, Tensor],
        texts: Mapping[str, Sequence[str]],
    ) -> None:
        """Look at the samples of a batch.

        Args:
            keys: one number for each, (samples,); samples of NaN are never picked.
            fingerprints: of each, (samples,).
            values: tensors, (samples, ...).
            texts: strings, one for each sample.
        """
        if self.number == 0:
            return
        signature = tuple((name, one.shape[1:], one.dtype) for name, one in values.items())
        found = _Group(
            keys.detach().double(),
            fingerprints,
            {name: one.detach() for name, one in values.items()},
            {name: list(one) for name, one in texts.items()},
        )
        best = self._groups.get(signature)
        if best is not None:
            found = _Group(
                torch.cat([best.keys, found.keys]),
                torch.cat([best.fingerprints, found.fingerprints]),
                {name: torch.cat([best.values[name], one]) for name, one in found.values.items()},
                {name: best.texts[name] + one for name, one in found.texts.items()},
            )
        by_content = torch.argsort(found.fingerprints, stable=True)
        order = by_content[torch.argsort(found.keys[by_content], stable=True)][: self.number]
        places: list[int] = order.tolist() if found.texts else []
        self._groups[signature] = _Group(
            found.keys[order],
            found.fingerprints[order],
            {name: one[order] for name, one in found.values.items()},
            {name: [one[place] for place in places] for name, one in found.texts.items()},
        )

    def gathered(self, world: Ranks) -> list[Sample]:
        """Return the samples of all ranks, in order; all ranks call it."""
        own = [sample for group in self._groups.values() for sample in _samples(group)]
        ranks = world.all_gather_object(own)
        every = [sample for rank in ranks for sample in rank if not math.isnan(sample.key)]
        every.sort(key=lambda one: (one.key, one.fingerprint))
        return every[: self.number]


def _samples(group: _Group) -> Iterable[Sample]:
    keys: list[float] = group.keys.tolist()
    fingerprints: list[int] = group.fingerprints.tolist()
    values = {name: as_array(one) for name, one in group.values.items()}
    for index, (key, fingerprint) in enumerate(zip(keys, fingerprints, strict=True)):
        yield Sample(
            key,
            fingerprint,
            {name: one[index] for name, one in values.items()},
            {name: one[index] for name, one in group.texts.items()},
        )


def as_array(tensor: Tensor) -> Array:
    """Return a tensor on the host, in a type that numpy has."""
    found = tensor.detach().cpu()
    return (found.float() if found.dtype is torch.bfloat16 else found).numpy()


def values_of(batch: object, size: int) -> dict[str, Tensor]:
    """Return, by name, the tensors of a batch that have an entry for each of its `size` samples."""
    return {
        name: one
        for name, one in named_tensors(batch).items()
        if one.ndim > 0 and len(one) == size and one.layout is torch.strided
    }


def texts_of(batch: object, size: int) -> dict[str, list[str]]:
    """Return the lists of strings in a batch, one string for each sample."""
    if isinstance(batch, Tensor):
        return {}
    return {
        name: list(item)
        for name, item in parts_of(batch)
        if isinstance(item, (list, tuple))
        and len(item) == size
        and all(isinstance(one, str) for one in item)
    }


def fingerprints(values: Mapping[str, Tensor], size: int, seed: int = 0) -> Tensor:
    """Return for each sample a number made of its content, as if drawn at random, int64 (samples,).

    It depends neither on the batch that a sample is in nor on the device. Of large samples it looks
    at 4,096 values of each tensor.

    Args:
        values: tensors, (samples, ...).
        size: number of samples.
        seed: other seeds give other numbers.
    """
    device = next((one.device for one in values.values()), torch.device("cpu"))
    total = torch.full((size,), seed, dtype=torch.int64, device=device)
    for one in values.values():
        flat = one.detach().reshape(size, -1)
        flat = flat[:, :: max(1, flat.shape[1] // MOST_VALUES)]
        if flat.is_complex():
            flat = torch.view_as_real(flat).reshape(size, -1)
        if flat.is_floating_point():
            flat = flat.float().contiguous().view(torch.int32)
        weights = torch.arange(1, flat.shape[1] + 1, device=device) * FACTOR + 1
        total = _mixed(total * FACTOR + (flat.long() * weights).sum(1))
    return _mixed(total)


def _mixed(number: Tensor) -> Tensor:
    """Let all bits depend on all others, as the finalizer of MurmurHash3 does."""
    for factor in (-49064778989728563, -4265267296055464877):
        number = (number ^ _shifted(number)) * factor
    return number ^ _shifted(number)


def _shifted(number: Tensor) -> Tensor:
    """Return the upper 31 bits, with zeros above them: torch's shift would repeat the sign."""
    return (number >> 33) & 0x7FFFFFFF
