"""ArrowDataset: columns of tables as tensors, in memory, mapped into it, or streamed."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raylit.data.arrow.columns import (
    NUMPY,
    BatchForm,
    Columns,
    Encoding,
    Form,
    Layout,
    Rows,
    form_of,
    joined,
)
from raylit.data.arrow.mapped import MappedRows
from raylit.data.arrow.memory import Store, free_bytes, tensor
from raylit.data.arrow.source import FileSource, Source, TableSource, open_source
from raylit.data.arrow.statistics import ColumnStatistics, statistics_of
from raylit.errors import ConfigError, DataError
from raylit.runtime.aliases import Batch, StateDict
from raylit.runtime.messages import info, warn_once

if TYPE_CHECKING:
    from raylit.data.arrow.loader import ArrowLoader

MODES = ("auto", "memory", "mapped", "stream")
HOW = {"memory": "read into memory", "mapped": "mapped into memory", "stream": "streamed"}
BUFFER_BYTES = 64 << 20
Labels = np.ndarray[tuple[int], np.dtype[np.uint8]]


class ArrowDataset:
    """Rows of Parquet, Feather/Arrow IPC, CSV or JSON lines, or of a table, as batches of tensors.

    Give it, or its `loader`, wherever a DataLoader is taken.

    Files, columns and numbers of rows are looked up when it is made. Rows are read when a loader
    begins, by each process for itself.

    Args:
        source: a path, a URL (`s3://`, `gs://`, all that fsspec knows), a folder (also one
            partitioned as Hive does), a glob, a list of them; a `pyarrow.Table`; a pandas or polars
            frame.
        columns: those to read; None: `features` and `target`, or all.
        features: what goes into x of a tuple, side by side; None: all columns but the target.
        target: what becomes y; a name, or several.
        batch: `dict`: a tensor for each column; `tuple`: (x, y); or a dataclass, whose fields are
            columns.
        filters: which rows: an expression of `pyarrow.compute`, or tuples such as `[("price", ">",
            0)]`.
        categories: columns that become codes: 0 for what is not in the vocabulary, then its values
            in order from 1 on. Dictionary columns always do.
        nulls: what to do with nulls, for all columns or by name (`"*"` for the others): `error`;
            `nan`; `mean`; `mask`, which makes them 0 and adds a column `<name>_is_null`; or a value
            that takes their place. A null in a category is code 0.
        normalize: whether to take its mean from each numeric feature and divide by the standard
            deviation; or the names of the columns.
        lists: of numbers, of varying length: `padded` with zeros, beside `<name>_length`; or
            `nested`.
        mode: `memory`: all rows as tensors; `mapped`: Arrow IPC on local disk, mapped; `stream`: a
            window of rows at a time; `auto`: `memory` if the rows fit into half of what is free,
            else `mapped` where it can be, else `stream`.
        buffer_bytes: how large a window of rows, as tensors, is; two are in memory at a time.
        buffer_rows: likewise, in rows.
        transform: changes a dict of columns before it becomes a batch: strings and bytes come as
            lists. Runs in the loader's workers if it has any.
        collate_fn: makes the batch of a dict of columns instead.
        float_dtype: of floating-point columns; timestamps stay float64 unless they are stacked.
        format: `parquet`, `ipc`, `csv`, `json`; None: by the names of the files.
        types: of columns of CSV and JSON lines, by name, where the inferred ones are wrong.
        storage_options: of fsspec's file system.
        other_data: `refuse` or `accept`: whether a fit may go on with other data than it began
            with.

    Raises:
        DataError: the data is not there, damaged, has nulls that nobody spoke of, or columns that
            cannot become tensors.
        ConfigError: arguments contradict each other.

    Source: https://arrow.apache.org/docs/python/dataset.html

    Example:
        >>> table = pa.table({"x": [0.0, 1.0, 2.0, 3.0], "y": [0, 1, 0, 1]})
        >>> dataset = ArrowDataset(table, target="y", batch="tuple")
        >>> [x.shape for x, y in dataset.loader(batch_size=3)]
        [torch.Size([3, 1]), torch.Size([1, 1])]
    """

    def __init__(
        self,
        source: object,
        *,
        columns: Sequence[str] | None = None,
        features: Sequence[str] | None = None,
        target: str | Sequence[str] | None = None,
        batch: BatchForm = "dict",
        filters: object = None,
        categories: Sequence[str] = (),
        nulls: object = "error",
        normalize: bool | Sequence[str] = False,
        lists: str = "padded",
        mode: str = "auto",
        buffer_bytes: int = BUFFER_BYTES,
        buffer_rows: int | None = None,
        transform: Callable[[Columns], Columns] | None = None,
        collate_fn: Callable[[Columns], Batch] | None = None,
        float_dtype: torch.dtype = torch.float32,
        format: str | None = None,
        types: Mapping[str, object] | None = None,
        storage_options: Mapping[str, object] | None = None,
        other_data: str = "refuse",
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"mode={mode!r} is not known. Use one of: {', '.join(MODES)}.")
        if other_data not in ("refuse", "accept"):
            raise ConfigError(f"other_data={other_data!r} is not known. Use 'refuse' or 'accept'.")
        for name, value in (("buffer_bytes", buffer_bytes), ("buffer_rows", buffer_rows)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ConfigError(
                    f"ArrowDataset({name}={value!r}): give a whole number of at least 1."
                )
        if float_dtype not in NUMPY or not float_dtype.is_floating_point:
            raise ConfigError(
                f"float_dtype={float_dtype} is no floating-point type that numpy knows. Use"
                " torch.float32, torch.float64 or torch.float16."
            )
        self.source: Source = open_source(source, format, filters, types, storage_options, columns)
        self.form: Form = form_of(
            self.source.schema,
            columns=columns,
            features=features,
            target=target,
            batch=batch,
            categories=categories,
            nulls=nulls,
            normalize=normalize,
            lists=lists,
            float_dtype=float_dtype,
            transform=transform,
            collate_fn=collate_fn,
        )
        self.other_data = other_data
        self.float_dtype = float_dtype
        self._buffer = buffer_bytes, buffer_rows
        self._encoding: Encoding | None = None
        self._statistics: dict[str, ColumnStatistics] | None = None
        self._labels: Labels | None = None  # of each row of the source, the part that it is in
        self._label = 0
        self._counts = tuple(piece.num_rows for piece in self.source.pieces)
        self._loaded = _Loaded()
        self._check_nulls()
        self._asked_mode = mode
        self.mode = ""
        self._choose_mode()

    # ---- what there is ----

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(self._counts)

    @property
    def schema(self) -> pa.Schema:
        """The columns of the files."""
        return self.source.schema

    @property
    def digest(self) -> str:
        """A hash of columns, filters, files and their contents, which identifies the data."""
        return self.source.digest

    @property
    def num_rows_by_piece(self) -> tuple[int, ...]:
        """The rows of each row group, record batch or block that belong to this part."""
        return self._counts

    def num_rows_of(self, piece: int) -> int:
        """Return how many rows of a piece belong to this part."""
        return self._counts[piece]

    @property
    def vocabulary(self) -> dict[str, list[Any]]:
        """The values of each category; code 1 is the first of them."""
        return {name: list(known) for name, known in self.encoding.vocabulary.items()}

    def num_categories(self, column: str) -> int:
        """Return how many codes a category has, that of unknown values among them.

        The size of its embedding.
        """
        if column not in self.encoding.vocabulary:
            raise ConfigError(
                f"The column {column!r} is no category. There are:"
                f" {', '.join(self.encoding.vocabulary) or 'none'}."
            )
        return len(self.encoding.vocabulary[column]) + 1

    def statistics(self) -> dict[str, ColumnStatistics]:
        """Return the statistics of each column over these rows, which are read once for them."""
        if self._statistics is None:
            self._statistics = statistics_of(self)
        return self._statistics

    @property
    def encoding(self) -> Encoding:
        """Vocabularies and statistics that turn columns into tensors.

        Those of these rows, unless `encoded` gave others.
        """
        if self._encoding is None:
            known = self.statistics() if needs_statistics(self.form) else {}
            self._encoding = encoding_of(self.form, known)
        return self._encoding

    @property
    def layout(self) -> Layout:
        """How rows lie in memory."""
        return Layout(self.form, self.encoding, self.float_dtype)

    def encoded(self, encoding: Encoding, shared: ArrowDataset | None = None) -> ArrowDataset:
        """Return a data set of the same rows with other vocabularies and statistics.

        Args:
            encoding: those.
            shared: another part of the same data with the same ones, whose rows in memory it uses.
        """
        one = copy.copy(self)
        if shared is not None:
            one._loaded = shared._loaded
        elif encoding != self._encoding:
            # Rows in memory hold the codes and scales of the encoding before
            one._loaded = _Loaded()
        one._encoding = encoding
        return one

    def part(self, labels: Labels, label: int) -> ArrowDataset:
        """Return a data set of those rows that have a label.

        Args:
            labels: one for each row of the source.
            label: which.

        Raises:
            DataError: no row has it.
        """
        assert len(labels) == sum(piece.num_rows for piece in self.source.pieces)
        one = copy.copy(self)
        one._labels = labels
        one._label = label
        one._statistics = None  # those of all rows
        counts = []
        start = 0
        for piece in self.source.pieces:
            counts.append(int(np.count_nonzero(labels[start : start + piece.num_rows] == label)))
            start += piece.num_rows
        one._counts = tuple(counts)
        if not sum(counts):
            raise DataError(
                f"A part of {self.source.name} has no rows: it has {len(labels):,} in all. Give"
                " the part a larger fraction."
            )
        return one

    # ---- how it is read ----

    def _check_nulls(self) -> None:
        """Check the counts of nulls that the files themselves record.

        Raises:
            DataError: there are some in a column for which nobody spoke of them.
        """
        strict = [column.source for column in self.form.columns if column.nulls == "error"]
        for piece, name, count in self.source.null_counts(strict):
            raise DataError(
                f"The column {name!r} has {count:,} nulls in {self.source.where(piece)}. Say what"
                f" to do with them: nulls={{{name!r}: 'nan'}},"
                " 'mean', 'mask' or a value; or leave these rows out with filters=."
            )

    def _choose_mode(self) -> None:
        """Choose how to read, and say the choice and its reason in one line."""
        rows = len(self)
        num_bytes = rows * self.row_bytes
        is_mappable = isinstance(self.source, FileSource) and self.source.is_mappable
        before = self.mode
        self.mode = self._asked_mode
        if self.mode == "mapped" and not is_mappable:
            raise ConfigError(
                "mode='mapped' needs uncompressed Arrow IPC on local disk, without filters;"
                f" {self.source.name} is {self.source.format}."
                " Make it so: raylit data convert SOURCE TARGET.arrow; or use mode='memory' or"
                " 'stream'."
            )
        if self.mode == "auto":
            # the ranks of a machine each have all rows
            ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
            free = free_bytes()
            fits = num_bytes <= free // 2 // ranks
            fallback = "mapped" if is_mappable else "stream"
            self.mode = "memory" if fits else fallback
            shared = f", shared by {ranks} ranks" if ranks > 1 else ""
            # Not again by a process that it is sent to, unless that chooses otherwise
            if self.mode != before and not isinstance(self.source, TableSource):
                info(
                    f"{self.source.name}: {rows:,} rows, {size_in_words(num_bytes)} as tensors,"
                    f" {HOW[self.mode]} ({'less' if fits else 'more'} than half of the"
                    f" {size_in_words(free)} that are free{shared})."
                )
        largest = max(self._counts)
        if self.mode == "stream" and largest > self.window_rows:
            warn_once(
                f"The largest row group of {self.source.name} has {largest:,} rows, and a window"
                f" {self.window_rows:,}: shuffling mixes within single row"
                " groups only. Write smaller ones (raylit data convert --row-group-size"
                f" {max(1, self.window_rows // 8)}), or give"
                f" buffer_bytes={largest * self.row_bytes * 4}."
            )

    @property
    def row_bytes(self) -> int:
        """How many bytes a row takes as tensors; of lists and objects as the files tell."""
        fixed = [
            column
            for column in self.form.columns
            if column.dtype is not None and column.kind != "list"
        ]
        loose = len(self.form.columns) - len(fixed)
        size = sum(column.row_bytes for column in fixed)
        if loose:  # strings, bytes and lists: as large as the files say that they are
            per_row = sum(piece.num_bytes for piece in self.source.pieces) // max(
                1, sum(piece.num_rows for piece in self.source.pieces)
            )
            size += per_row * loose // max(1, len(self.source.schema.names)) if fixed else per_row
        return max(1, size)

    @property
    def window_rows(self) -> int:
        """How many rows are mixed at a time while streaming."""
        num_bytes, num_rows = self._buffer
        limit = max(1, num_bytes // self.row_bytes)
        return limit if num_rows is None else min(limit, num_rows)

    def tables(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """Give these rows as tables of Arrow's, piece by piece, with the number of the piece."""
        for piece, count in enumerate(self._counts):
            if count:
                for table, _ in self._chosen(piece, columns):
                    yield piece, table

    def decoded(self, piece: int) -> Iterator[Rows]:
        """Give those rows of a piece that belong to this part, some at a time."""
        layout = self._layout()
        for table, where in self._chosen(piece, layout.names):
            if table.num_rows:
                yield layout.decode(table, where)

    def _chosen(self, piece: int, columns: Sequence[str]) -> Iterator[tuple[pa.Table, str]]:
        where = self.source.where(piece)
        start = self._starts()[piece]
        for table in self.source.batches(piece, columns):
            stop = start + table.num_rows
            if self._labels is not None:
                is_mine = self._labels[start:stop] == self._label
                if not is_mine.all():
                    table = table.filter(pa.array(is_mine))
            start = stop
            yield table, where

    def _starts(self) -> list[int]:
        if self._loaded.starts is None:
            self._loaded.starts = np.append(
                0, np.cumsum([piece.num_rows for piece in self.source.pieces])
            ).tolist()
        return self._loaded.starts

    def _layout(self) -> Layout:
        if self._loaded.layout is None:
            self._loaded.layout = self.layout
        return self._loaded.layout

    def store(self) -> Store:
        """Return all rows of the source by number: as tensors, or mapped.

        Parts of the data share them.
        """
        loaded = self._loaded
        layout = self._layout()
        if self.mode == "mapped":
            assert isinstance(self.source, FileSource)
            loaded.store = loaded.store or MappedRows(self.source, layout)
        elif loaded.store is None:
            whole = copy.copy(self)
            whole._labels = None
            pieces = range(len(self.source.pieces))
            num_rows = sum(piece.num_rows for piece in self.source.pieces)
            loaded.store = joined(
                (rows for piece in pieces for rows in whole.decoded(piece)), num_rows
            )
        return loaded.store

    def numbers(self) -> Tensor | None:
        """Return which rows of the store belong to this part; None: all."""
        if self._labels is None:
            return None
        return torch.from_numpy(np.flatnonzero(self._labels == self._label))

    # ---- reading it ----

    def loader(self, batch_size: int = 256, **options: Any) -> ArrowLoader:
        """Return a loader; the arguments are those of `ArrowLoader`."""
        from raylit.data.arrow.loader import ArrowLoader

        return ArrowLoader(self, batch_size, **options)

    def __iter__(self) -> Iterator[Batch]:
        """Read the rows in order, in batches of 256."""
        return iter(self.loader())

    def __getitem__(self, number: int) -> object:
        """Return one row as a batch has it, without the first dimension.

        For samplers and loaders of torch's.
        """
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: list[int]) -> list[object]:
        """Return several rows, gathered at once."""
        if self.mode == "stream":
            raise DataError(
                f"{self.source.name} is streamed, so its rows cannot be had one by one. Read it"
                " with dataset.loader(...), which shuffles and shards"
                " too, or give mode='memory'."
            )
        total = len(self)
        for number in numbers:
            if not -total <= number < total:
                raise IndexError(f"row {number} of {total}")
        places = tensor([int(number) % total for number in numbers])
        mine = self.numbers()
        layout = self._layout()
        rows = layout.finish(self.store().take(places if mine is None else mine[places]), pin=False)
        return [_first(layout.batch(rows, number, number + 1)) for number in range(len(rows))]

    def __getstate__(self) -> dict[str, object]:
        """Leave out the rows of files: another process reads them itself."""
        return {**self.__dict__, "_loaded": _Loaded()}

    def __setstate__(self, state: StateDict) -> None:
        """Choose anew how to read: another machine has other memory, and perhaps several ranks."""
        self.__dict__.update(state)
        self._choose_mode()

    def __repr__(self) -> str:
        return f"ArrowDataset({self.source.name!r}, {len(self):,} rows, mode={self.mode!r})"


class _Loaded:
    """The objects that the parts of one data set share in one process."""

    def __init__(self) -> None:
        self.store: Store | None = None
        self.layout: Layout | None = None
        self.starts: list[int] | None = None


def needs_statistics(form: Form) -> bool:
    """Tell whether the rows have to be read before any of them can become a tensor."""
    return bool(form.normalized) or any(
        column.kind == "category" or column.nulls == "mean" for column in form.columns
    )


def encoding_of(form: Form, statistics: Mapping[str, ColumnStatistics]) -> Encoding:
    """Return the vocabularies, means and scales that the columns of a form need.

    Raises:
        DataError: a mean is wanted of a column that has no values.
    """
    vocabulary: dict[str, list[object]] = {}
    means: dict[str, float] = {}
    scales: dict[str, tuple[float, float]] = {}
    for column in form.columns:
        if column.kind == "category":
            vocabulary[column.name] = list(statistics[column.name].vocabulary or [])
        if column.kind == "number" and column.nulls == "mean":
            means[column.name] = _known(column.name, statistics[column.name].mean)
        if column.name in form.normalized:
            one = statistics[column.name]
            # Of a column that never changes nothing is left but 0
            scales[column.name] = (
                _known(column.name, one.mean),
                one.std or 1.0,
            )
    return Encoding(vocabulary, means, scales)


def _known(name: str, mean: float | None) -> float:
    if mean is None:
        raise DataError(
            f"The column {name!r} has no values in the training part, and so no mean. Leave it"
            f" out, or give nulls={{{name!r}: 0.0}}."
        )
    if not math.isfinite(mean):
        raise DataError(
            f"The column {name!r} has infinite values in the training part, and so no mean. Leave"
            f" these rows out with filters=, or {name!r} out of normalize= and of nulls='mean'."
        )
    return mean


def _first(batch: Batch) -> object:
    """Return the only row of a batch."""
    if isinstance(batch, Mapping):
        return {name: _first(one) for name, one in batch.items()}
    if isinstance(batch, tuple):
        return tuple(map(_first, batch))
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return dataclasses.replace(
            batch,
            **{
                one.name: _first(getattr(batch, one.name))
                for one in dataclasses.fields(batch)
                if one.init
            },
        )
    return batch[0] if isinstance(batch, (Tensor, list)) else batch


def size_in_words(num_bytes: int) -> str:
    """Return a number of bytes with a unit."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
