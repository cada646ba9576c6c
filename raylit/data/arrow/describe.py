"""A description of a table, and of the form in which raylit would read each column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raylit.data.arrow.columns import Column, column_of
from raylit.data.arrow.dataset import ArrowDataset, size_in_words
from raylit.data.arrow.source import FileSource, Source, open_source
from raylit.data.arrow.statistics import ColumnStatistics

MAX_CATEGORIES = 1000  # more different strings than this are hardly a category


@dataclass(frozen=True)
class Described:
    """One column in words."""

    name: str
    type: str
    nulls: str
    range: str
    becomes: str


def describe(source: object, types: Mapping[str, str] | None = None) -> tuple[str, list[Described]]:
    """Return a line on the data, and a description of each column; reads all rows once.

    Raises:
        DataError: the data cannot be read.
    """
    dataset = ArrowDataset(source, transform=_as_it_is, nulls="mask", types=types, mode="stream")
    known = dataset.statistics()
    distinct = _distinct(dataset)
    columns = []
    for field in dataset.schema:
        one = column_of(field, "mask", False, dataset.float_dtype)
        found = known[field.name]
        nulls = f"{found.nulls:,}" + (f" and {found.nans:,} NaN" if found.nans else "")
        columns.append(
            Described(
                field.name,
                str(field.type),
                nulls,
                _range(one, found, distinct.get(field.name)),
                _becomes(one, found, distinct.get(field.name)),
            )
        )
    return _line(dataset.source), columns


def head(source: object, num_rows: int, types: Mapping[str, str] | None = None) -> pa.Table:
    """Return the first rows.

    Raises:
        DataError: the data cannot be read.
    """
    opened = open_source(source, types=types)
    tables: list[pa.Table] = []
    for piece in range(len(opened.pieces)):
        for table in opened.batches(piece, opened.schema.names):
            tables.append(table.slice(0, num_rows - sum(one.num_rows for one in tables)))
            if sum(one.num_rows for one in tables) == num_rows:
                return pa.concat_tables(tables)
    return pa.concat_tables(tables)


def _as_it_is(batch: dict[str, object]) -> dict[str, object]:
    return batch


def _line(source: Source) -> str:
    rows = sum(piece.num_rows for piece in source.pieces)
    sizes = [piece.num_rows for piece in source.pieces]
    files = source.files if isinstance(source, FileSource) else []
    stored = sum(file.size for file in files)
    number = f"{len(files)} file{'s' if len(files) != 1 else ''}"
    return (
        f"{source.name}: {source.format}, {number} of {size_in_words(stored)}, {rows:,} rows in"
        f" {len(sizes):,} row group{'s' if len(sizes) != 1 else ''} of {min(sizes):,} to"
        f" {max(sizes):,} rows, digest {source.digest[:12]}"
    )


def _distinct(dataset: ArrowDataset) -> dict[str, int | None]:
    """Return how many different strings columns have; None: more than a category would."""
    names = [
        field.name
        for field in dataset.schema
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    found: dict[str, set[object] | None] = {name: set() for name in names}
    for _, table in dataset.tables(names) if names else ():
        for name in names:
            known = found[name]
            if known is not None:
                known |= set(pc.unique(table.column(name).drop_null()).to_pylist())
                found[name] = known if len(known) <= MAX_CATEGORIES else None
    return {name: None if known is None else len(known) for name, known in found.items()}


def _range(column: Column, found: ColumnStatistics, distinct: int | None) -> str:
    if found.vocabulary is not None:
        return f"{len(found.vocabulary):,} values: {_few(found.vocabulary)}"
    if found.mean is not None:
        return f"{found.min:.6g} to {found.max:.6g}, mean {found.mean:.6g}, std {found.std:.6g}"
    if distinct is not None:
        return f"{distinct:,} different"
    return ""


def _few(values: Sequence[object]) -> str:
    shown = ", ".join(map(str, values[:4]))
    return shown if len(values) <= 4 else f"{shown}, ..."


def _becomes(column: Column, found: ColumnStatistics, distinct: int | None) -> str:
    dtype = str(column.dtype).removeprefix("torch.")
    if column.kind == "category":
        made = f"code {dtype}, 0 to {len(found.vocabulary or [])}"
    elif column.kind == "tensor":
        made = f"{dtype} {list(column.shape)}"
    elif column.kind == "list":
        made = f"padded {dtype} and {column.name}_length"
    elif column.kind == "number":
        is_time = pa.types.is_temporal(column.arrow)
        made = f"{dtype}, seconds" if is_time else dtype
    elif distinct is not None:
        made = f"for transform=, or a code: categories=[{column.name!r}]"
    else:
        made = "for transform= or collate_fn="
    if found.nulls:
        made += f"; nulls={{{column.name!r}: ...}} has to be said"
    return made
