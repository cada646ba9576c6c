"""Mean, standard deviation, range, nulls and vocabulary of columns.

Computed by Arrow, piece by piece, and kept beside the data.
"""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from raylit.data.arrow.columns import Column, _ticks
from raylit.errors import DataError
from raylit.runtime import storage
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from raylit.data.arrow.dataset import ArrowDataset
    from raylit.runtime.aliases import StateDict

MAX_VOCABULARY = 1_000_000
FOLDER = ".raylit"
PlainVocabulary = list[object] | dict[str, str] | None


@dataclass
class ColumnStatistics:
    """The statistics of one column.

    Attributes:
        count: values that are neither null nor NaN.
        nulls: how many nulls.
        nans: how many NaN.
        mean: of numbers, and of all elements of tensors; times in seconds. None if there are no
            values.
        std: the standard deviation likewise, over the population.
        min: the smallest value.
        max: the largest.
        vocabulary: of a category, its values in order.
    """

    count: int = 0
    nulls: int = 0
    nans: int = 0
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    vocabulary: list[Any] | None = None


class _Sums:
    """Adds up one column, piece by piece.

    Source: Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", 1979.
    """

    def __init__(self, column: Column) -> None:
        self.column = column
        self.found = ColumnStatistics()
        self._squares = 0.0
        self._values: set[Any] = set()  # which can be sorted

    def add(self, array: pa.ChunkedArray) -> None:
        found = self.found
        column = self.column
        found.nulls += array.null_count
        if column.kind == "category":
            plain = (
                array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array
            )
            plain = plain.drop_null()
            if pa.types.is_floating(plain.type):  # NaN is not even equal to itself
                is_number = pc.invert(pc.is_nan(plain))
                found.nans += len(plain) - (pc.sum(is_number).as_py() or 0)
                plain = plain.filter(is_number)
            found.count += len(plain)
            self._values.update(pc.unique(plain).to_pylist())
            if len(self._values) > MAX_VOCABULARY:
                raise DataError(
                    f"The column {column.name!r} has more than {MAX_VOCABULARY:,} different"
                    " values, which are too many for codes of their own."
                    " Leave it out of categories=, or let transform= hash it."
                )
            return
        numbers = _as_numbers(column, array)
        if numbers is None:
            found.count += len(array) - array.null_count
            return
        numbers = numbers.drop_null()
        is_nan = pc.is_nan(numbers)
        nans = pc.sum(is_nan).as_py() or 0
        if nans:
            numbers = numbers.filter(pc.invert(is_nan))
        found.nans += nans
        count = len(numbers)
        if not count:
            return
        mean = pc.mean(numbers).as_py()
        low_high = pc.min_max(numbers).as_py()
        squares = pc.variance(numbers).as_py() * count
        before = found.count
        apart = mean - (found.mean or 0.0)
        found.count += count
        found.mean = (found.mean or 0.0) + apart * count / found.count
        self._squares += squares + apart * apart * before * count / found.count
        found.min = low_high["min"] if found.min is None else min(found.min, low_high["min"])
        found.max = low_high["max"] if found.max is None else max(found.max, low_high["max"])

    def result(self) -> ColumnStatistics:
        if self.column.kind == "category":
            self.found.vocabulary = sorted(self._values)
        elif self.found.mean is not None and self.found.min == self.found.max:
            self.found.mean = self.found.min  # exactly: rounding would leave a tiny deviation,
            self.found.std = 0.0  # by which other values were divided
        elif self.found.mean is not None:
            self.found.std = math.sqrt(self._squares / self.found.count)
        return self.found


def _as_numbers(column: Column, array: pa.ChunkedArray) -> pa.ChunkedArray | None:
    if column.kind == "tensor":
        flat = [one.storage if isinstance(one, pa.ExtensionArray) else one for one in array.chunks]
        while flat and pa.types.is_fixed_size_list(flat[0].type):
            flat = [one.flatten() for one in flat]
        return pa.chunked_array(flat, type=None if flat else pa.float64()).cast(pa.float64())
    if column.kind != "number":
        return None
    if pa.types.is_temporal(array.type):
        ticks, factor = _ticks(array)
        return pc.multiply(ticks.cast(pa.float64(), safe=False), factor)
    return array.cast(pa.float64(), safe=False)


def statistics_of(dataset: ArrowDataset) -> dict[str, ColumnStatistics]:
    """Read all rows of a data set once and return the statistics of each of its columns.

    Raises:
        DataError: a category has too many values, or the data cannot be read.
    """
    sums = {column.name: _Sums(column) for column in dataset.form.columns if column.kind != "mask"}
    for _, table in dataset.tables([one.column.source for one in sums.values()]):
        for one in sums.values():
            one.add(table.column(one.column.source))
    return {name: one.result() for name, one in sums.items()}


# ---- kept ----


def to_plain(statistics: Mapping[str, ColumnStatistics]) -> dict[str, StateDict]:
    """Return statistics as plain data, which JSON and checkpoints hold."""
    return {
        name: {**vars(one), "vocabulary": plain_vocabulary(one.vocabulary)}
        for name, one in statistics.items()
    }


def from_plain(plain: Mapping[str, StateDict]) -> dict[str, ColumnStatistics]:
    """Return the statistics that `to_plain` has turned into plain data."""
    return {
        name: ColumnStatistics(**{**one, "vocabulary": vocabulary_of(one["vocabulary"])})
        for name, one in plain.items()
    }


def plain_vocabulary(values: Any) -> PlainVocabulary:
    """Return values of a category as plain data: those that JSON does not know as Arrow IPC.

    Such as dates, times, decimals and bytes; an object in a checkpoint would come back only where
    the file may run code.
    """
    if values is None or all(isinstance(value, (str, int, float)) for value in values):
        return None if values is None else list(values)
    if type(values[0]).__module__.startswith("pandas"):  # Arrow's nanoseconds in Python
        import pandas

        values = pandas.Series(values)  # of which Arrow makes nanoseconds, of a list microseconds
    sink = pa.BufferOutputStream()
    table = pa.table({"values": pa.array(values)})
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return {"arrow": base64.b64encode(sink.getvalue()).decode()}


def vocabulary_of(plain: PlainVocabulary) -> Any:
    """Return the values that `plain_vocabulary` was given."""
    if not isinstance(plain, Mapping):
        return plain
    with pa.ipc.open_stream(base64.b64decode(plain["arrow"])) as reader:
        return reader.read_all().column("values").to_pylist()


def place_of(path: str, key: str) -> str:
    """Return where statistics of data at a path or URL are kept: in a hidden folder beside it."""
    path = storage.local(path)
    is_folder = not storage.is_url(path) and os.path.isdir(path)
    root = path if is_folder else os.path.dirname(path)
    while any(sign in root for sign in "*?["):
        root = os.path.dirname(root)
    return os.path.join(root, FOLDER, f"statistics-{key}.json")


def read_kept(path: str, columns: Sequence[str]) -> dict[str, ColumnStatistics] | None:
    """Return statistics that were kept, None if there are none of these columns."""
    try:
        with storage.downloaded(path) as local, open(local, encoding="utf-8") as file:
            found = from_plain(json.load(file))
    except (OSError, ValueError, TypeError):  # none, or of another version: they are made anew
        return None
    return found if set(columns) <= set(found) else None


def keep(path: str, statistics: Mapping[str, ColumnStatistics]) -> None:
    """Write statistics beside the data, where that can be written to."""
    text = json.dumps(to_plain(statistics), indent=1)
    try:
        temporary = f"{path}.{os.getpid()}"
        if storage.is_url(path):
            storage.write_text(path, text)
        else:
            storage.write_text(temporary, text)
            os.replace(temporary, path)
    except OSError as error:
        info(
            f"The statistics of the data could not be kept at {path}, and are computed in each"
            f" fit: {error}"
        )
