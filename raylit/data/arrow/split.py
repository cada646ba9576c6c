"""Which rows are trained on, and which are kept apart.

By chance, by groups, by time, or with equal shares of each class.

A row's part depends on its number in the data and on the values of one column, not on which file or
row group it is in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raylit.data.arrow.order import Keyed
from raylit.data.arrow.source import check_column, in_one_line
from raylit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from raylit.data.arrow.dataset import ArrowDataset, Labels

CHUNK_ROWS = 1 << 20


@dataclass(frozen=True)
class Split:
    """How the data is split.

    Attributes:
        parts: name and fraction, or number of rows, of each part but the training part.
        by: the column whose equal values stay together.
        time: the column by which the newest rows come last: into the last of the parts.
        stratify: the column whose values have the same shares in each part.
        seed: of chance.
    """

    parts: tuple[tuple[str, float], ...]
    by: str | None = None
    time: str | None = None
    stratify: str | None = None
    seed: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The parts, in the order of their labels; the training part has label 0."""
        return ("train", *(name for name, _ in self.parts))


def split_of(
    parts: Mapping[str, float] | None,
    by: str | None,
    time: str | None,
    stratify: str | None,
    seed: int,
) -> Split:
    """Return a split whose arguments fit together.

    Raises:
        ConfigError: they do not.
    """
    chosen = {
        name: one for name, one in (("by", by), ("time", time), ("stratify", stratify)) if one
    }
    if len(chosen) > 1:
        raise ConfigError(
            f"{' and '.join(f'{name}=' for name in chosen)} contradict each other: rows are split"
            " in one"
            " way. Give one of them."
        )
    if not parts:
        if chosen:
            raise ConfigError(
                f"{next(iter(chosen))}= says how to split, but not into what. Give"
                " split={'val': 0.1} too."
            )
        return Split(())
    if not isinstance(parts, Mapping):
        raise ConfigError(
            f"split={parts!r} is no dict. Name the parts: split={{'val': 0.1, 'test': 0.1}}; the"
            " rest is trained on."
        )
    total = 0.0
    for name, part in parts.items():
        if name not in ("val", "test", "predict"):
            raise ConfigError(f"split={dict(parts)!r}: parts are 'val', 'test' and 'predict'.")
        is_count = isinstance(part, int) and not isinstance(part, bool) and part > 0
        if not is_count and not (isinstance(part, float) and 0.0 < part < 1.0):
            raise ConfigError(
                f"split={dict(parts)!r}: {part!r} is neither a fraction between 0 and 1 nor a"
                " number"
                " of rows. Write split={'val': 0.1}."
            )
        total += part if isinstance(part, float) else 0.0
    if total >= 1.0:
        raise ConfigError(
            f"split={dict(parts)!r} leaves nothing to train on: the fractions add up to {total:g}."
        )
    return Split(tuple(parts.items()), by, time, stratify, seed)


def labels_of(dataset: ArrowDataset, split: Split) -> Labels:
    """Return for each row the number of its part in `Split.names`.

    Raises:
        DataError: a part, or what is left for training, has no rows.
    """
    num_rows = len(dataset)
    sizes = [part if isinstance(part, int) else round(part * num_rows) for _, part in split.parts]
    for column, argument in ((split.by, "by"), (split.time, "time"), (split.stratify, "stratify")):
        if column is not None:
            check_column(column, dataset.schema.names, argument)
    try:
        if split.by is not None:
            labels = _by_group(_column(dataset, split.by), sizes, split.seed)
        elif split.time is not None:
            labels = _by_time(_column(dataset, split.time), sizes, split.time)
        elif split.stratify is not None:
            labels = _by_class(_column(dataset, split.stratify), sizes, split.seed)
        else:
            labels = _by_chance(num_rows, sizes, split.seed)
    except (pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        name = split.by or split.time or split.stratify
        raise DataError(
            f"Rows cannot be split by the column {name!r}, which is"
            f" {dataset.schema.field(name).type}: {in_one_line(error)}. Name one of numbers, texts"
            " or times."
        ) from error
    counts = np.bincount(labels, minlength=len(split.names))
    for name, count in zip(split.names, counts, strict=True):
        if not count:
            raise DataError(
                f"split={dict(split.parts)!r} of {num_rows:,} rows leaves none for {name!r}. Change"
                " the fractions, or split by another column."
            )
    return labels


def _column(dataset: ArrowDataset, name: str) -> pa.ChunkedArray:
    column = pa.chunked_array(
        [chunk for _, table in dataset.tables([name]) for chunk in table.column(0).chunks],
        dataset.schema.field(name).type,
    )
    # Arrow neither sorts dictionaries nor finds the same value in two of them
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _by_chance(num_rows: int, sizes: list[int], seed: int) -> Labels:
    labels = np.zeros(num_rows, np.uint8)
    # Not randperm, which would hold 8 bytes for each row, beside the one of its label
    shuffled = Keyed(num_rows, seed)
    for start in range(0, num_rows, CHUNK_ROWS):
        stop = min(num_rows, start + CHUNK_ROWS)
        # those that come first in a random order are the first part, and so on
        places = shuffled(np.arange(start, stop))
        labels[start:stop] = _label_of_place(places, sizes)
    return labels


def _label_of_place(places: np.ndarray, sizes: list[int]) -> np.ndarray:
    bounds = np.cumsum(sizes)
    found = np.searchsorted(bounds, places, side="right") + 1
    return np.where(found > len(sizes), 0, found)


def _by_group(column: pa.ChunkedArray, sizes: list[int], seed: int) -> Labels:
    codes, values = _codes(column)
    counts = np.bincount(codes, minlength=len(values)).tolist()
    # By the values: their codes would change with the order of the rows
    order = sorted(range(len(values)), key=lambda code: _hashed(seed, values[code]))
    label_of_group = np.zeros(len(values), np.uint8)
    for label, size in enumerate(sizes, 1):
        left = [code for code in order if not label_of_group[code]]
        missing = size
        for code in left:
            # a group that would bring the part further from its size than it is stays out
            if counts[code] < 2 * missing:
                label_of_group[code] = label
                missing -= counts[code]
        if missing == size and len(left) > 1:  # all are too large: the smallest is the nearest
            label_of_group[min(left, key=lambda code: counts[code])] = label
    labels: Labels = label_of_group[codes]
    return labels


def _hashed(seed: int, value: object) -> bytes:
    return hashlib.blake2b(repr((seed, value)).encode(), digest_size=8).digest()


def _by_time(column: pa.ChunkedArray, sizes: list[int], name: str) -> Labels:
    if column.null_count:
        raise DataError(
            f"The column {name!r} has {column.null_count:,} nulls, so that not all rows have their"
            f" place in time. Leave these out: filters=pc.field({name!r}).is_valid()."
        )
    if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
        raise DataError(
            f"The column {name!r} has NaN, so that not all rows have their place in time. Leave"
            f" these out: filters=~pc.field({name!r}).is_nan()."
        )
    # rows of the same time in the order of the data
    places = pc.sort_indices(
        pa.table({"time": column, "row": np.arange(len(column))}),
        sort_keys=[("time", "ascending"), ("row", "ascending")],
    ).to_numpy()
    labels = np.zeros(len(column), np.uint8)
    stop = len(column)
    for label in range(len(sizes), 0, -1):
        start = max(0, stop - sizes[label - 1])
        labels[places[start:stop]] = label
        stop = start
    return labels


def _by_class(column: pa.ChunkedArray, sizes: list[int], seed: int) -> Labels:
    codes, values = _codes(column)
    num_rows = len(codes)
    order = np.lexsort((Keyed(num_rows, seed)(np.arange(num_rows)), codes))
    counts = np.bincount(codes, minlength=len(values))
    labels = np.zeros(num_rows, np.uint8)
    start = 0
    for count, shares in zip(counts.tolist(), _shares(counts, sizes).tolist(), strict=True):
        labels[order[start : start + count]] = _label_of_place(np.arange(count), shares)
        start += count
    return labels


def _shares(counts: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Return how many rows of each class (a row) each part (a column) gets.

    Parts have their sizes exactly, and each class its share to within a row: by the method of the
    largest remainder, where a class that has got less than its due in one part is before others in
    the next.
    """
    found = np.zeros((len(counts), len(sizes)), np.int64)
    left = counts.copy()
    owed = np.zeros(len(counts))
    for part, size in enumerate(sizes):
        owed += counts * (size / max(int(counts.sum()), 1))
        found[:, part] = np.minimum(np.floor(owed).clip(0), left)
        # of those that have rows left, the ones that are owed most get one more
        rest = np.where(left > found[:, part], owed - found[:, part], -np.inf)
        more = np.argsort(-rest, kind="stable")[: max(0, size - int(found[:, part].sum()))]
        found[more[np.isfinite(rest[more])], part] += 1
        left -= found[:, part]
        owed -= found[:, part]
    return found


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[object]]:
    """Return a number for each row, and the value of each number; null is the last of them."""
    # Arrow cannot unify dictionaries that hold nulls
    encoded = column.dictionary_encode(null_encoding="mask").unify_dictionaries()
    values = encoded.chunk(0).dictionary.to_pylist()
    codes = np.concatenate(
        [pc.fill_null(chunk.indices, len(values)).to_numpy() for chunk in encoded.chunks]
    )
    return codes.astype(np.int64), [*values, None] if column.null_count else values
