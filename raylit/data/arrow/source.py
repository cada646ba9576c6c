"""Where rows come from: files of one format, local or at a URL, or a table that is there already.

A source is a list of pieces, each of which can be read by itself and has a known number of rows:
row groups of Parquet, record batches of IPC, runs of lines of CSV and JSON lines, slices of a
table. The number of a row is its place in all pieces, one after the other.
"""

from __future__ import annotations

import glob
import hashlib
import os
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.ipc
import pyarrow.parquet as pq

from raylit.data.arrow.text import NEWLINE_FORMATS, TextReader
from raylit.errors import DataError, did_you_mean
from raylit.runtime import storage

Path = str | os.PathLike[str]
EXTENSIONS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".ipc": "ipc",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".br")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
SLICE_ROWS = 65_536  # of a table that is there already
SAMPLE_BYTES = 1 << 16  # of a file, at each of `NUM_SAMPLES` places, for its digest
NUM_SAMPLES = 64
WHOLE_BYTES = 1 << 22  # smaller files are read in whole for it
NUM_OPENERS = 16  # files whose footers are read at the same time; at a URL each takes a round trip


@dataclass(frozen=True)
class File:
    """One file: `path` in its file system, `name` for messages, size and stamp to tell changes."""

    path: str
    name: str
    size: int
    stamp: str
    partition: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of a file that is read by itself.

    Row group, record batch, or bytes `start` to `stop` of a text.
    """

    file: int
    index: int
    num_rows: int
    num_bytes: int
    start: int = 0
    stop: int = 0


class Source(Protocol):
    """Rows in pieces."""

    schema: pa.Schema
    pieces: list[Piece]
    name: str
    format: str

    @property
    def digest(self) -> str:
        """Return the digest that identifies the data.

        It is the same for the same rows in the same files, wherever they lie.
        """

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        """Return the rows of a piece that pass the filters."""

    def batches(self, piece: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Return the same in parts, so that a large piece need not be in memory as a whole."""

    def where(self, piece: int) -> str:
        """Return the place of a piece in words."""

    def null_counts(self, columns: Sequence[str]) -> Iterator[tuple[int, str, int]]:
        """Yield the counts of nulls that the files themselves record.

        Each is the piece, the column and the number, where that is not 0.
        """


def open_source(
    source: object,
    format: str | None = None,
    filters: object = None,
    types: Mapping[str, object] | None = None,
    storage_options: Mapping[str, object] | None = None,
    columns: Sequence[str] | None = None,
) -> Source:
    """Find out which files there are, of which columns, and where their rows are.

    Args:
        source: a path, a URL, a folder, a glob, a list of them, a `pyarrow.Table`, or a pandas or
            polars frame.
        format: `parquet`, `ipc`, `csv` or `json`; None: by the names of the files.
        filters: which rows there are: an expression of pyarrow's, or tuples such as `[("price",
            ">", 0)]`.
        types: of columns of CSV and JSON lines, by name, where those that are inferred are not
            right.
        storage_options: of fsspec's file system.
        columns: what will be read. Then others that not all files have, or have alike, are left
            out; without, all files must have the same.

    Raises:
        DataError: there is no file, one cannot be read, is torn or empty, or two have other
            columns.
    """
    if isinstance(source, (str, os.PathLike)) or _is_list_of_paths(source):
        return FileSource(source, format, filters, types, storage_options, columns)
    return TableSource(as_table(source), filters)


def check_names(schema: pa.Schema, what: str) -> pa.Schema:
    """See that no two columns have the same name.

    Raises:
        DataError: two have.
    """
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        raise DataError(
            f"{what} has several columns named {twice[0]!r}. Give each a name of its own."
        )
    return schema


def _is_list_of_paths(source: object) -> TypeGuard[list[Path]]:
    return isinstance(source, (list, tuple)) and all(
        isinstance(one, (str, os.PathLike)) for one in source
    )


def as_table(source: object) -> pa.Table:
    """Return a table of Arrow's, without a copy where Arrow can.

    Raises:
        DataError: it is nothing that can become one.
    """
    try:
        if isinstance(source, pa.Table):
            return without_views(source)
        if isinstance(source, pa.RecordBatch):
            return without_views(pa.Table.from_batches([source]))
        if type(source).__module__.partition(".")[0] == "pandas":
            return without_views(pa.Table.from_pandas(source, preserve_index=False))
        if hasattr(source, "__arrow_c_stream__"):
            return without_views(pa.table(source))
    except pa.ArrowException as error:
        raise DataError(
            f"A {type(source).__name__} could not become an Arrow table: {error}"
        ) from error
    raise DataError(
        f"ArrowDataset got a {type(source).__name__}. Give a path, a URL, a folder, a glob, a list"
        " of paths, a pyarrow.Table, or a pandas or polars frame (a LazyFrame after .collect())."
    )


def without_views(table: pa.Table) -> pa.Table:
    """Return a table whose strings, bytes and lists are laid out as Arrow's computations want them.

    polars hands over views (`string_view`), for which Arrow 25 has no cast of categories, hash or
    comparison. Other columns are not copied.
    """
    for index, field in enumerate(table.schema):
        plain = without_views_of(field.type)
        if plain != field.type:
            column = _relaid(table.column(index), plain)
            table = table.set_column(index, field.with_type(plain), column)
    return table


def without_views_of(type_: pa.DataType) -> pa.DataType:
    """Return the type that `without_views` gives a column."""
    if pa.types.is_string_view(type_):
        return pa.large_string()
    if pa.types.is_binary_view(type_):
        return pa.large_binary()
    if pa.types.is_list_view(type_):
        return pa.list_(without_views_of(type_.value_type))
    if pa.types.is_large_list_view(type_):
        return pa.large_list(without_views_of(type_.value_type))
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        inner = without_views_of(type_.value_type)
        outer = pa.list_ if pa.types.is_list(type_) else pa.large_list
        return type_ if inner == type_.value_type else outer(inner)
    if pa.types.is_dictionary(type_):
        inner = without_views_of(type_.value_type)
        if inner != type_.value_type:
            return pa.dictionary(type_.index_type, inner, type_.ordered)
    return type_


def schema_without_views(schema: pa.Schema) -> pa.Schema:
    """Return the schema of a table after `without_views`, without its metadata."""
    return pa.schema([field.with_type(without_views_of(field.type)) for field in schema])


def _relaid(column: pa.ChunkedArray, plain: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_dictionary(plain):
        chunks = [_dictionary(chunk, plain) for chunk in column.chunks]
    elif pa.types.is_list(plain) or pa.types.is_large_list(plain):
        chunks = [_lists(chunk, plain) for chunk in column.chunks]
    else:
        return column.cast(plain)
    return pa.chunked_array(chunks, type=plain)


def _dictionary(array: pa.DictionaryArray, plain: pa.DataType) -> pa.DictionaryArray:
    words = array.dictionary.cast(plain.value_type)
    return pa.DictionaryArray.from_arrays(array.indices, words, ordered=plain.ordered)


def _lists(array: pa.Array, plain: pa.DataType) -> pa.Array:
    # Not by cast: Arrow 25.0.1 leaves the last offset out, which `validate(full=True)` shows.
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    wide = pa.int32() if pa.types.is_list(plain) else pa.int64()
    ends = pc.cumulative_sum(lengths.cast(wide))
    offsets = pa.concat_arrays([pa.array([0], wide), ends])
    values = pa.chunked_array([array.flatten()])
    if values.type != plain.value_type:
        values = _relaid(values, plain.value_type)
    return type(pa.array([], plain)).from_arrays(
        offsets, values.combine_chunks(), type=plain, mask=array.is_null()
    )


def as_expression(filters: Any, schema: pa.Schema) -> ds.Expression | None:
    """Return filters as an expression of pyarrow's that fits the columns; None if there are none.

    Raises:
        DataError: it names a column that is not there, or compares values of other types.
    """
    if filters is None:
        return None
    if not isinstance(filters, ds.Expression):
        try:
            plain = [_condition(one, schema) for one in filters]
            filters = pq.filters_to_expression(plain)
        except (ValueError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"filters={filters!r} is not understood. Give tuples such as [('price', '>', 0)]:"
                f" {error}"
            ) from error
    try:
        schema.empty_table().filter(filters)
    except pa.ArrowException as error:
        raise DataError(
            f"The filter {filters} does not fit the columns {', '.join(schema.names)}: {error}"
        ) from error
    return filters


def _condition(one: Sequence[Any], schema: pa.Schema) -> tuple[object, ...] | list[object]:
    """Return a condition as a tuple, which a config file has as a list.

    Or a list of several, which all have to hold.
    """
    is_condition = len(one) == 3 and isinstance(one[0], str) and isinstance(one[1], str)
    if not is_condition:
        if isinstance(one, str):
            raise ValueError(f"{one!r} is no condition")
        return [_condition(part, schema) for part in one]
    check_column(one[0], schema.names, "filters")
    return tuple(one)


def in_one_line(error: Exception) -> str:
    """Return the message of an exception of Arrow's, without its line breaks."""
    return " ".join(str(error).split())


def check_column(name: object, names: Sequence[str], argument: str) -> None:
    """See that there is a column of this name.

    Raises:
        DataError: there is none; it names the nearest.
    """
    if name not in names:
        raise DataError(
            f"{argument} names the column {name!r}, which is not"
            f" there.{did_you_mean(str(name), names)} There are: {', '.join(names)}."
        )


class TableSource:
    """A table that is in memory already."""

    format = "table"

    def __init__(self, table: pa.Table, filters: object = None) -> None:
        check_names(table.schema, "The table")
        expression = as_expression(filters, table.schema)
        self.table = table if expression is None else table.filter(expression)
        self.schema: pa.Schema = table.schema
        self.name = "the table"
        if not self.table.num_rows:
            raise DataError(
                f"{'No row passes the filters' if table.num_rows else 'The table has no rows'}:"
                " there is nothing to read."
            )
        row_bytes = max(1, self.table.nbytes // self.table.num_rows)
        self.pieces = [
            Piece(
                0,
                number,
                rows := min(SLICE_ROWS, self.table.num_rows - start),
                rows * row_bytes,
                start,
                start + rows,
            )
            for number, start in enumerate(range(0, self.table.num_rows, SLICE_ROWS))
        ]
        self._digest: str | None = None

    @property
    def digest(self) -> str:
        """Return a hash of all values; it is made once."""
        if self._digest is None:
            found = hashlib.blake2b(str(self.schema.remove_metadata()).encode(), digest_size=16)
            for batch in self.table.combine_chunks().to_batches(max_chunksize=SLICE_ROWS):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, batch.schema) as writer:
                    writer.write_batch(batch)
                found.update(sink.getvalue())
            self._digest = found.hexdigest()
        return self._digest

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        """Return a slice."""
        one = self.pieces[piece]
        return self.table.select(list(columns)).slice(one.start, one.num_rows)

    def batches(self, piece: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Return the slice."""
        yield self.read(piece, columns)

    def where(self, piece: int) -> str:
        """Return which rows they are."""
        return f"the table (rows from {self.pieces[piece].start:,} on)"

    def null_counts(self, columns: Sequence[str]) -> Iterator[tuple[int, str, int]]:
        """Return the nulls of all columns, counted."""
        for name in columns:
            for number, piece in enumerate(self.pieces):
                if count := self.table.column(name).slice(piece.start, piece.num_rows).null_count:
                    yield number, name, count


class FileSource:
    """Files of one format: looked at when the source is made, opened by each process that reads."""

    def __init__(
        self,
        source: Path | list[Path] | tuple[Path, ...],
        format: str | None,
        filters: object,
        types: Mapping[str, object] | None,
        storage_options: Mapping[str, object] | None,
        columns: Sequence[str] | None = None,
    ) -> None:
        paths = [
            os.fspath(one) for one in (source if isinstance(source, (list, tuple)) else [source])
        ]
        if not paths:
            raise DataError("ArrowDataset got an empty list of files. Name one at least.")
        self.name = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        if format is not None and format not in READERS:
            raise DataError(
                f"format={format!r} is not known.{did_you_mean(format, READERS)} Use one of:"
                f" {', '.join(READERS)}."
            )
        self.url = paths[0]
        self._options = dict(storage_options or {})
        self._opened_by = os.getpid()
        self._fs: tuple[pa.fs.FileSystem, Any] | None = None
        self._fragments: dict[int, object] = {}
        self.is_local = not storage.is_url(self.url)
        found = self._find(paths, format)
        self.format = format or _format_of([name for _, name, _ in found])
        self.files = [self._looked_at(path, name, partition) for path, name, partition in found]
        self._reader: FormatReader = READERS[self.format](self, types)
        with ThreadPoolExecutor(min(NUM_OPENERS, len(self.files))) as pool:
            looks = list(pool.map(self._reader.look, range(len(self.files))))
        schemas = [
            check_names(schema, file.name)
            for file, (schema, _) in zip(self.files, looks, strict=True)
        ]
        self._physical = self._agreed_schema(schemas, columns)
        partition = _partition_fields(self.files)
        self.schema = pa.schema(
            [*(one for one in self._physical if one.name not in partition.names), *partition]
        )
        self._partition = partition
        self._filter = as_expression(filters, self.schema)
        self.pieces: list[Piece] = [piece for _, pieces in looks for piece in pieces]
        if self._filter is not None:
            with ThreadPoolExecutor(NUM_OPENERS) as pool:
                counts = list(pool.map(self._count, range(len(self.pieces))))
            self.pieces = [
                Piece(
                    one.file,
                    one.index,
                    count,
                    one.num_bytes * count // max(one.num_rows, 1),
                    one.start,
                    one.stop,
                )
                for one, count in zip(self.pieces, counts, strict=True)
            ]
            if not sum(counts):
                raise DataError(
                    f"No row of {self.name} passes the filter {self._filter}: there is nothing to"
                    " read."
                )
        self._digest: str | None = None

    def __getstate__(self) -> dict[str, object]:
        """Leave out the open files: another process opens them itself."""
        return {
            **self.__dict__,
            "_fs": None,
            "_fragments": {},
            "_opened_by": None,
            "_filter": self._filter,
        }

    # ---- which files ----

    def _find(
        self, paths: list[str], format: str | None
    ) -> list[tuple[str, str, tuple[tuple[str, object], ...]]]:
        """Return path in the file system, name and partition of each file.

        Raises:
            DataError: there is none, or it may not be looked for.
        """
        found: list[tuple[str, str, tuple[tuple[str, object], ...]]] = []
        for path in paths:
            if storage.is_url(path) == self.is_local:
                raise DataError(
                    f"The files {self.url} and {path} are in different places. Give files of one"
                    " file system."
                )
            try:
                names = self._listed(path)
            except FileNotFoundError as error:
                raise DataError(f"There is no {path}.{_nearest(path)}") from error
            except OSError as error:
                raise DataError(
                    f"{path} could not be looked at: {error}.{_credentials(path)}"
                ) from error
            chosen = [one for one in names if not _is_hidden(*one)]
            if len(chosen) > 1 or (names and names[0][0] != names[0][1]):
                known = [
                    one for one in chosen if format is not None or _extension(one[1]) in EXTENSIONS
                ]
            else:
                known = chosen
            if not known:
                raise DataError(
                    f"{path} holds no file to read ({len(names)} of other kinds). Files are told"
                    " by their ends,"
                    f" {', '.join(EXTENSIONS)}; say format='parquet' or another for files that are"
                    " named otherwise."
                )
            found += [(inner, name, _partition_of(name)) for inner, name in known]
        return found

    def _listed(self, path: str) -> list[tuple[str, str]]:
        """Return the files at a path, folder or glob, in order.

        Each path in the file system, and from the root that was given.
        """
        if self.is_local:
            path = storage.local(path)
            if any(sign in path for sign in "*?[") and not os.path.exists(path):
                names = sorted(
                    one for one in glob.glob(path, recursive=True) if os.path.isfile(one)
                )
                if not names:
                    raise FileNotFoundError(path)
                return [(one, os.path.basename(one) if len(names) == 1 else one) for one in names]
            if os.path.isdir(path):
                walked = (
                    os.path.join(folder, name)
                    for folder, _, names in os.walk(path)
                    for name in names
                )
                return [(one, os.path.relpath(one, path)) for one in sorted(walked)]
            if not os.path.exists(path):
                raise FileNotFoundError(path)
            return [(path, path)]
        fs, inner = storage.file_system(path, **self._options)
        with storage.asking():
            if any(sign in inner for sign in "*?["):
                names = sorted(fs.glob(inner))
                if not names:
                    raise FileNotFoundError(path)
                return [(one, one) for one in names]
            if fs.isdir(inner):
                return [(one, one[len(inner) :].lstrip("/")) for one in sorted(fs.find(inner))]
            if not fs.exists(inner):
                fs.info(inner)  # says why: not there, or not to be seen
                raise FileNotFoundError(path)
            return [(inner, inner)]

    def _looked_at(self, path: str, name: str, partition: tuple[tuple[str, object], ...]) -> File:
        size, stamp = self._size_and_stamp(path)
        if not size:
            raise DataError(
                f"{name} is empty: 0 bytes. It was probably not written to its end; write it"
                " again, or take it out."
            )
        return File(path, name, size, stamp, partition)

    def _size_and_stamp(self, path: str) -> tuple[int, str]:
        if self.is_local:
            info = os.stat(path)
            return info.st_size, str(info.st_mtime_ns)
        with storage.asking():
            found = self._file_system()[1].info(path)
        stamp = next(
            (
                found[key]
                for key in ("ETag", "etag", "LastModified", "mtime", "updated", "created")
                if found.get(key)
            ),
            "",
        )
        return int(found["size"] or 0), str(stamp)

    def _file_system(self) -> tuple[pa.fs.FileSystem, Any]:
        """Return the file system, as pyarrow's and as fsspec's.

        Opened in this process, since those with threads do not outlive a fork.
        """
        if self._opened_by != os.getpid() or self._fs is None:
            self._opened_by = os.getpid()
            self._fragments = {}
            if self.is_local:
                self._fs = pa.fs.LocalFileSystem(), None
            else:
                # Not from its cache, which a fork has copied without the thread that it needs
                own, _ = storage.file_system(self.url, skip_instance_cache=True, **self._options)
                self._fs = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(own)), own
        return self._fs

    def opened(self, number: int, mapped: bool = False) -> pa.NativeFile:
        """Open a file, once it is seen to be the one that was looked at.

        Raises:
            DataError: it is gone, was changed since, or may not be read.
        """
        self.check_unchanged(number)
        file = self.files[number]
        try:
            if mapped and self.is_local:
                return pa.memory_map(file.path)
            return self._file_system()[0].open_input_file(file.path)
        except OSError as error:
            raise DataError(
                f"{file.name} could not be opened: {error}.{_credentials(self.url)}"
            ) from error

    def check_unchanged(self, number: int) -> None:
        """See that a file is still the one that was looked at.

        Raises:
            DataError: it is gone or was changed.
        """
        file = self.files[number]
        try:
            size, stamp = self._size_and_stamp(file.path)
        except FileNotFoundError as error:
            raise DataError(
                f"{file.name} has vanished since the data was looked at. Put it back, or make the"
                " data set anew."
            ) from error
        except OSError as error:
            raise DataError(
                f"{file.name} could not be looked at: {error}.{_credentials(self.url)}"
            ) from error
        if (size, stamp) != (file.size, file.stamp):
            raise DataError(
                f"{file.name} has changed since the data was looked at: it had {file.size:,} bytes"
                f" and has {size:,}"
                f" (written at {file.stamp}, then at {stamp}). Make the data set anew, and leave"
                " files alone that are being read."
            )

    # ---- which columns ----

    def _agreed_schema(self, schemas: list[pa.Schema], columns: Sequence[str] | None) -> pa.Schema:
        """Return the columns that all files have.

        Raises:
            DataError: one has others, and they are to be read.
        """
        first = schemas[0]
        left_out: set[str] = set()
        for file, schema in zip(self.files[1:], schemas[1:], strict=True):
            if schema.equals(first):
                continue
            for name in dict.fromkeys([*first.names, *schema.names]):
                problem = self._difference(name, first, file, schema)
                if problem is not None and (columns is None or name in columns):
                    raise DataError(problem)
                if problem is not None:
                    left_out.add(name)
        agreed = pa.schema([field for field in first if field.name not in left_out])
        return agreed.remove_metadata() if agreed.metadata else agreed

    def _difference(self, name: str, first: pa.Schema, file: File, schema: pa.Schema) -> str | None:
        """Return the difference of a column between the first file and another, or None."""
        here, there = first.get_field_index(name) >= 0, schema.get_field_index(name) >= 0
        if here != there:
            with_it, without = (self.files[0], file) if here else (file, self.files[0])
            similar = did_you_mean(name, (schema if here else first).names)
            return (
                f"The files have different columns: {with_it.name} has {name!r},"
                f" {without.name} does not.{similar} Write them anew with one schema, or name those"
                " to read, which all have, in columns=."
            )
        theirs, ours = schema.field(name).type, first.field(name).type
        if theirs == ours:
            return None
        return (
            f"The column {name!r} is {ours} in {self.files[0].name}, but {theirs} in {file.name}."
            " Write the files anew with one schema (raylit data convert), or name those to read,"
            " without it, in columns=."
        )

    # ---- reading ----

    def _count(self, piece: int) -> int:
        return self._reader.count(self.pieces[piece], self._filter)

    def read(self, piece: int, columns: Sequence[str]) -> pa.Table:
        """Return the rows of a piece that pass the filters.

        Raises:
            DataError: the file is gone, was changed, or is damaged here.
        """
        one = self.pieces[piece]
        self.check_unchanged(one.file)
        try:
            table = self._reader.read(one, list(columns), self._filter)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.where(piece)} could not be read: {in_one_line(error)}. The file is"
                " damaged, or cut off; write it anew, or take it out."
            ) from error
        self._check_rows(piece, table.num_rows)
        return table

    def batches(self, piece: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Return the same in parts.

        Raises:
            DataError: as for `read`.
        """
        one = self.pieces[piece]
        num_rows = 0
        self.check_unchanged(one.file)
        try:
            for table in self._reader.batches(one, list(columns), self._filter):
                num_rows += table.num_rows
                yield table
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.where(piece)} could not be read: {in_one_line(error)}. The file is"
                " damaged, or cut off; write it anew, or take it out."
            ) from error
        self._check_rows(piece, num_rows)

    def _check_rows(self, piece: int, num_rows: int) -> None:
        if num_rows != self.pieces[piece].num_rows:
            raise DataError(
                f"{self.where(piece)} gave {num_rows:,} rows, where"
                f" {self.pieces[piece].num_rows:,} were counted. The file was changed while"
                " it was read, or lines of it hold line breaks in quotes: raylit data convert"
                " makes Parquet of it."
            )

    def where(self, piece: int) -> str:
        """Return file and row group in words."""
        one = self.pieces[piece]
        return f"{self.files[one.file].name}, {self._reader.unit} {one.index}"

    def null_counts(self, columns: Sequence[str]) -> Iterator[tuple[int, str, int]]:
        """Yield the counts of nulls that the files record; none with filters, which change them."""
        if self._filter is None:
            for number, piece in enumerate(self.pieces):
                for name, count in self._reader.null_counts(piece, columns):
                    if count:
                        yield number, name, count

    def with_partition(self, table: pa.Table, number: int, columns: list[str]) -> pa.Table:
        """Return the columns asked for, with those that the path of the file tells of."""
        values = dict(self.files[number].partition)
        for field in self._partition:
            if field.name in columns:
                table = table.append_column(
                    field, pa.repeat(pa.scalar(values[field.name], field.type), table.num_rows)
                )
        return table.select(columns)

    def partition_expression(self, number: int) -> ds.Expression:
        """Return the partition values in a file's path, as an expression on its rows."""
        expression = ds.scalar(True)
        for name, value in self.files[number].partition:
            typed = pa.scalar(value, self._partition.field(name).type)
            expression = expression & (
                ds.field(name).is_null() if value is None else ds.field(name) == typed
            )
        return expression

    @property
    def is_mappable(self) -> bool:
        """Whether the rows lie on local disk as they lie in memory, all of them."""
        return (
            self.format == "ipc"
            and self.is_local
            and self._filter is None
            and self._reader.is_plain
        )

    @property
    def digest(self) -> str:
        """Return a hash of columns, filters, names, sizes, and contents or etags.

        Of texts every byte counts; of larger binary files, which are not read in whole before
        they are trained on, samples.
        """
        if self._digest is None:
            found = hashlib.blake2b(
                f"{self.format} {self.schema} {self._filter}".encode(), digest_size=16
            )
            for file in self.files:
                name = (
                    os.path.basename(file.path)
                    if not file.partition
                    else "/".join(f"{k}={v}" for k, v in file.partition)
                )
                # When a local file was written does not count: a copy of it is the same data
                found.update(f"{name} {file.size} {'' if self.is_local else file.stamp}".encode())
                if self.is_local:
                    _add_contents(found, file, is_whole=self.format in NEWLINE_FORMATS)
            self._digest = found.hexdigest()
        return self._digest


def _lies_within(batch: pa.RecordBatch, whole: pa.Buffer) -> bool:
    """Tell whether the values of a batch are read where they lie in a buffer."""
    return all(
        # Not by Arrow's count of allocated bytes, in which those of other threads are too: a
        # loader that read ahead made a plain file look compressed
        whole.address <= buffer.address <= whole.address + whole.size
        for column in batch.columns
        for buffer in column.buffers()
        if buffer is not None and buffer.size
    )


def _add_contents(digest: hashlib.blake2b, file: File, is_whole: bool) -> None:
    with open(file.path, "rb") as stream:
        if is_whole or file.size <= WHOLE_BYTES:
            while part := stream.read(WHOLE_BYTES):
                digest.update(part)
            return
        last = file.size - SAMPLE_BYTES  # where a footer ends, which tells most of changes
        for number in range(NUM_SAMPLES):
            stream.seek(last * number // (NUM_SAMPLES - 1))
            digest.update(stream.read(SAMPLE_BYTES))


# ---- formats ----


class FormatReader(Protocol):
    """How files of one format are read."""

    unit: str
    is_plain: bool

    def look(self, number: int) -> tuple[pa.Schema, list[Piece]]:
        """Return columns and pieces of a file."""

    def count(self, piece: Piece, expression: ds.Expression | None) -> int:
        """Return how many rows pass a filter."""

    def read(self, piece: Piece, columns: list[str], expression: ds.Expression | None) -> pa.Table:
        """Return those rows."""

    def batches(
        self, piece: Piece, columns: list[str], expression: ds.Expression | None
    ) -> Iterator[pa.Table]:
        """Return them in parts."""

    def null_counts(self, piece: Piece, columns: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Yield the counts of nulls that the file records."""


class ParquetReader:
    """Row groups of Parquet."""

    unit = "row group"
    is_plain = False

    def __init__(self, source: FileSource, types: Mapping[str, object] | None) -> None:
        self.source = source
        self.has_views = False  # of which Arrow's scanner cannot filter
        _refuse_types(types, "Parquet")

    def look(self, number: int) -> tuple[pa.Schema, list[Piece]]:
        """Read the footer.

        Raises:
            DataError: there is none, or a codec is not there.
        """
        source = self.source
        file = source.files[number]
        try:
            metadata = pq.read_metadata(source.opened(number))
            stored = metadata.schema.to_arrow_schema()
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file.name} is no whole Parquet file: {in_one_line(error)} It was cut off or is"
                f" of another format ({file.size:,} bytes);"
                " write it again, or take it out."
            ) from error
        schema = schema_without_views(stored)
        self.has_views = self.has_views or schema != stored.remove_metadata()
        pieces = []
        for index in range(metadata.num_row_groups):
            group = metadata.row_group(index)
            columns = [group.column(place) for place in range(group.num_columns)]
            for column in columns:
                _check_codec(column, file.name, index)
            if group.num_rows:
                pieces.append(
                    Piece(
                        number,
                        index,
                        group.num_rows,
                        sum(one.total_uncompressed_size for one in columns),
                    )
                )
        if not pieces:
            raise DataError(f"{file.name} has no rows. Take it out, or write it again.")
        return schema, pieces

    def _fragment(self, number: int) -> ds.Fragment:
        source = self.source
        fs, _ = source._file_system()
        if number not in source._fragments:
            fragment = ds.ParquetFileFormat().make_fragment(
                source.files[number].path,
                filesystem=fs,
                partition_expression=source.partition_expression(number),
            )
            fragment.ensure_complete_metadata()
            source._fragments[number] = fragment
        return source._fragments[number]

    def count(self, piece: Piece, expression: ds.Expression | None) -> int:
        """Count; row groups whose statistics rule them out are not read."""
        if self.has_views:
            return int(self.read(piece, self.source.schema.names, expression).num_rows)
        one = self._fragment(piece.file).subset(row_group_ids=[piece.index])
        return int(one.scanner(schema=self.source.schema, filter=expression).count_rows())

    def read(self, piece: Piece, columns: list[str], expression: ds.Expression | None) -> pa.Table:
        """Decode a row group, its columns at the same time."""
        one = self._fragment(piece.file).subset(row_group_ids=[piece.index])
        schema = self.source.schema
        if self.has_views and expression is not None:
            return one.to_table(schema=schema).filter(expression).select(columns)
        return one.to_table(schema=schema, columns=columns, filter=expression)

    def batches(
        self, piece: Piece, columns: list[str], expression: ds.Expression | None
    ) -> Iterator[pa.Table]:
        """Decode a row group piece by piece."""
        if self.has_views and expression is not None:
            yield self.read(piece, columns, expression)
            return
        one = self._fragment(piece.file).subset(row_group_ids=[piece.index])
        scanned = one.scanner(
            schema=self.source.schema,
            columns=columns,
            filter=expression,
            batch_size=32_768,
            batch_readahead=2,
            fragment_readahead=1,
        )
        for batch in scanned.to_batches():
            if batch.num_rows:
                yield pa.Table.from_batches([batch])

    def null_counts(self, piece: Piece, columns: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Read them in the statistics of the footer."""
        group = self._fragment(piece.file).metadata.row_group(piece.index)
        wanted = set(columns)
        for place in range(group.num_columns):
            column = group.column(place)
            if (
                column.path_in_schema in wanted
                and column.statistics is not None
                and column.statistics.has_null_count
            ):
                yield column.path_in_schema, column.statistics.null_count


class IpcReader:
    """Record batches of Arrow IPC, which is Feather V2."""

    unit = "record batch"

    def __init__(self, source: FileSource, types: Mapping[str, object] | None) -> None:
        self.source = source
        self.is_plain = True
        _refuse_types(types, "IPC")

    def opened(self, number: int) -> pa.ipc.RecordBatchFileReader:
        """Open a file, mapped into memory where it is local."""
        source = self.source
        source._file_system()
        if number not in source._fragments:
            source._fragments[number] = pa.ipc.open_file(source.opened(number, mapped=True))
        return source._fragments[number]

    def look(self, number: int) -> tuple[pa.Schema, list[Piece]]:
        """Read the footer, and the header of each batch.

        Raises:
            DataError: there is none.
        """
        file = self.source.files[number]
        pieces = []
        try:
            stored = self.source.opened(number, mapped=True)
            whole = stored.read_buffer() if self.source.is_local else None  # the map, no copy
            reader = pa.ipc.open_file(stored)
            for index in range(reader.num_record_batches):
                batch = reader.get_batch(index)
                if batch.num_rows:
                    num_bytes = batch.get_total_buffer_size()  # `nbytes` refuses views
                    pieces.append(Piece(number, index, batch.num_rows, num_bytes))
                if whole is not None and not _lies_within(batch, whole):
                    self.is_plain = False  # compressed: what was read is not what lies on the disk
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{file.name} is no whole Arrow IPC file: {in_one_line(error)}. It was cut off, or"
                " is an IPC stream, or of another format"
                f" ({file.size:,} bytes); write it again with pyarrow.ipc.new_file, or take it out."
            ) from error
        if not pieces:
            raise DataError(f"{file.name} has no rows. Take it out, or write it again.")
        return schema_without_views(reader.schema), pieces

    def count(self, piece: Piece, expression: ds.Expression | None) -> int:
        """Read the batch and count."""
        return int(self.read(piece, [], expression).num_rows)

    def read(self, piece: Piece, columns: list[str], expression: ds.Expression | None) -> pa.Table:
        """Return a record batch."""
        batch = self.opened(piece.file).get_batch(piece.index)
        table = without_views(pa.Table.from_batches([batch]))
        return _filtered(self.source, table, piece, columns, expression)

    def batches(
        self, piece: Piece, columns: list[str], expression: ds.Expression | None
    ) -> Iterator[pa.Table]:
        """Return the record batch."""
        yield self.read(piece, columns, expression)

    def null_counts(self, piece: Piece, columns: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Count them where they are stored: with each record batch."""
        batch = self.opened(piece.file).get_batch(piece.index)
        for name in columns:
            if name in batch.schema.names:
                yield name, batch.column(name).null_count


class LinesReader:
    """Runs of lines of CSV and JSON lines."""

    unit = "block"
    is_plain = False

    def __init__(self, source: FileSource, types: Mapping[str, object] | None) -> None:
        self.source = source
        self.text = TextReader(source.format, types)
        # of each file, whose columns may be in another order, or others
        self._headers: dict[int, tuple[pa.Schema, str]] = {}

    def look(self, number: int) -> tuple[pa.Schema, list[Piece]]:
        """Read the file once, and note where its lines are.

        Raises:
            DataError: it has no rows, or cannot be understood.
        """
        file = self.source.files[number]
        if file.path.endswith(COMPRESSED):
            raise DataError(
                f"{file.name} is compressed as a whole, so that it cannot be read from its middle."
                " Make Parquet of it:"
                f" raylit data convert {file.path}"
                f" {os.path.basename(file.path).partition('.')[0]}.parquet"
            )
        with self.source.opened(number) as stream:
            schema, delimiter, blocks = self.text.look(stream, file.name)
        self._headers[number] = schema, delimiter
        return schema, [
            Piece(number, index, num_rows, stop - start, start, stop)
            for index, (start, stop, num_rows) in enumerate(blocks)
        ]

    def count(self, piece: Piece, expression: ds.Expression | None) -> int:
        """Read the lines and count."""
        return int(self.read(piece, [], expression).num_rows)

    def read(self, piece: Piece, columns: list[str], expression: ds.Expression | None) -> pa.Table:
        """Parse a run of lines."""
        with self.source.opened(piece.file) as stream:
            stream.seek(piece.start)
            text = stream.read(piece.stop - piece.start)
        own, delimiter = self._headers[piece.file]
        agreed = self.source._physical
        schema = pa.schema(
            [agreed.field(one.name) if one.name in agreed.names else one for one in own]
        )
        table = self.text.parse(
            text, schema, delimiter, f"{self.source.files[piece.file].name}, block {piece.index}"
        )
        return _filtered(self.source, table, piece, columns, expression)

    def batches(
        self, piece: Piece, columns: list[str], expression: ds.Expression | None
    ) -> Iterator[pa.Table]:
        """Parse it."""
        yield self.read(piece, columns, expression)

    def null_counts(self, piece: Piece, columns: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Text says nothing of nulls before it is parsed."""
        return iter(())


READERS: dict[str, Callable[[FileSource, Mapping[str, object] | None], FormatReader]] = {
    "parquet": ParquetReader,
    "ipc": IpcReader,
    **dict.fromkeys(NEWLINE_FORMATS, LinesReader),
}


def _filtered(
    source: FileSource,
    table: pa.Table,
    piece: Piece,
    columns: list[str],
    expression: ds.Expression | None,
) -> pa.Table:
    if expression is None:
        return source.with_partition(table, piece.file, columns)
    table = source.with_partition(table, piece.file, source.schema.names)
    return table.filter(expression).select(columns)


def _refuse_types(types: Mapping[str, object] | None, format: str) -> None:
    if types:
        raise DataError(
            f"types={dict(types)!r} is for CSV and JSON lines; {format} files have types of their"
            " own."
        )


def _check_codec(column: pq.ColumnChunkMetaData, name: str, group: int) -> None:
    codec = column.compression.lower()
    known = {"uncompressed": None, "lz4": "lz4_raw", "lz4_raw": "lz4_raw"}.get(codec, codec)
    try:
        there = known is None or pa.Codec.is_available("lz4" if known == "lz4_raw" else known)
    except ValueError:
        there = False
    if not there:
        raise DataError(
            f"{name}, row group {group}, column {column.path_in_schema!r} is compressed with"
            f" {column.compression}, which this pyarrow"
            f" ({pa.__version__}) cannot read. Write it anew with zstd or snappy."
        )


# ---- names ----


def _extension(name: str) -> str:
    base = name.lower()
    for suffix in COMPRESSED:
        base = base.removesuffix(suffix)
    return os.path.splitext(base)[1]


def _format_of(names: list[str]) -> str:
    formats = {EXTENSIONS.get(_extension(name), "") for name in names}
    if len(formats) > 1:
        by_format = {
            one: next(name for name in names if EXTENSIONS.get(_extension(name), "") == one)
            for one in sorted(formats)
        }
        raise DataError(
            f"The files are of different formats: {', '.join(by_format.values())}. Give those of"
            " one format, or a glob such as '*.parquet'."
        )
    if formats == {""}:
        raise DataError(
            f"What {names[0]} is cannot be told by its name. Say so: format='parquet', 'ipc',"
            " 'csv' or 'json'."
        )
    return formats.pop()


def _is_hidden(path: str, name: str) -> bool:
    """Tell whether a file, or a folder that it is in, is no data: `.raylit/`, `_delta_log/`.

    Only folders below the one that was given count: what a path or glob names is wanted.
    """
    below = os.path.basename(name) if name == path else name
    return any(part.startswith((".", "_")) and "=" not in part for part in below.split("/"))


def _partition_of(name: str) -> tuple[tuple[str, object], ...]:
    """Return the keys and values in a path such as `year=2024/month=5/a.parquet`."""
    found = []
    for part in name.split("/")[:-1]:
        key, is_one, value = part.partition("=")
        if is_one and key:
            found.append((key, None if value == HIVE_NULL else urllib.parse.unquote(value)))
    return tuple(found)


def _partition_fields(files: list[File]) -> pa.Schema:
    """Return the columns that paths tell of; whole numbers where all are, values made so.

    Raises:
        DataError: some files have others.
    """
    names = [name for name, _ in files[0].partition]
    for file in files:
        if [name for name, _ in file.partition] != names:
            raise DataError(
                f"The folders of {file.name} name the columns"
                f" {[name for name, _ in file.partition]}, those of {files[0].name} {names}."
                " Partition all files by the same columns."
            )
    fields = []
    for place, name in enumerate(names):
        values = [file.partition[place][1] for file in files]
        is_number = all(value is None or _is_whole_number(value) for value in values)
        fields.append(pa.field(name, pa.int64() if is_number else pa.string()))
    for number, file in enumerate(files):
        typed = tuple(
            (name, int(value) if value is not None and pa.types.is_integer(field.type) else value)
            for (name, value), field in zip(file.partition, fields, strict=True)
        )
        files[number] = File(file.path, file.name, file.size, file.stamp, typed)
    return pa.schema(fields)


def _is_whole_number(text: str) -> bool:
    return (
        text.removeprefix("-").isascii()
        and text.removeprefix("-").isdigit()
        and str(int(text)) == text
    )


def _nearest(path: str) -> str:
    folder = os.path.dirname(path) or "."
    return (
        did_you_mean(path, [os.path.join(os.path.dirname(path), one) for one in os.listdir(folder)])
        if os.path.isdir(folder)
        else ""
    )


def _credentials(url: str) -> str:
    _, _, credentials = storage.BUCKETS.get(url.partition("://")[0], (None, None, None))
    return f" Credentials, and where the bucket is, come from {credentials}." if credentials else ""
