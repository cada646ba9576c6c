"""Tables and folders of images become Parquet or Arrow IPC, in row groups that stream well."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet as pq

from raylit.data.arrow.source import check_column, in_one_line, open_source
from raylit.data.arrow.text import delimiter_of, type_of, with_nulls
from raylit.errors import ConfigError, DataError, MissingPackageError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
GROUP_BYTES = 8 << 20  # a window of 64 MB, which is what streaming mixes, then has several
LEAST_ROWS = 256
MOST_ROWS = 1 << 20
IMAGES_AT_ONCE = 256
TARGETS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "ipc",
    ".ipc": "ipc",
    ".feather": "ipc",
}


def convert(
    source: str,
    target: str,
    *,
    row_group_size: int | None = None,
    compression: str = "zstd",
    columns: Sequence[str] | None = None,
    types: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
    force: bool = False,
) -> tuple[int, int]:
    """Write a table, or a folder of images, as one file of Parquet or Arrow IPC.

    A folder of images becomes a column `image`, the bytes of each file, a column `label`, the name
    of the folder that it is in, and a column `path`. With `image_size` images are decoded and
    resized, to uint8 of (height, width, 3). CSV may be compressed as a whole, and its values may
    hold line breaks. The file appears whole or not at all.

    Args:
        source: what `ArrowDataset` takes, or a folder of images.
        target: where to write: `.parquet`, or `.arrow` for what is to be mapped into memory.
        row_group_size: rows in a row group; None: about 8 MB.
        compression: of Parquet; IPC is written as it lies in memory.
        columns: those to keep; None: all.
        types: of columns of text, by name.
        image_size: height and width.
        force: whether to write over a file that is there.

    Returns:
        How many rows and row groups were written.

    Raises:
        DataError: the source cannot be read.
        ConfigError: the target is of no format that is written, or is there already.
    """
    format = TARGETS.get(os.path.splitext(target)[1])
    if format is None:
        raise ConfigError(
            f"{target}: what to write is told by its end, which is one of {', '.join(TARGETS)}."
        )
    if os.path.exists(target) and not force:
        raise ConfigError(f"{target} is there already. Give --force to write over it.")
    if row_group_size is not None and row_group_size < 1:
        raise ConfigError(f"--row-group-size {row_group_size}: give a whole number of at least 1.")
    tables = _tables(source, columns, types, image_size)
    try:
        first = next(tables, None)
    except pa.ArrowException as error:
        raise DataError(f"{source} could not be read: {in_one_line(error)}") from error
    if first is None or not first.num_rows:
        raise DataError(f"{source} has no rows: there is nothing to write.")
    rows = row_group_size or _rows_for(first)
    os.makedirs(os.path.dirname(os.path.abspath(target)), exist_ok=True)
    with (
        _whole(target) as temporary,
        _writer(temporary, format, first.schema, compression) as write,
    ):
        return _write_groups(first, tables, rows, write, source)


def _write_groups(
    first: pa.Table,
    tables: Iterator[pa.Table],
    rows: int,
    write: Callable[[pa.Table], None],
    source: str,
) -> tuple[int, int]:
    held = first
    num_rows = num_groups = 0
    is_last = False
    while not is_last:
        while held.num_rows < rows:
            try:
                following = next(tables, None)
            except pa.ArrowException as error:
                raise DataError(
                    f"{source} could not be read after {num_rows + held.num_rows:,} rows:"
                    f" {in_one_line(error)}. If a type is wrong, name the right one: --type"
                    " column=float64"
                ) from error
            if following is None:
                is_last = True
                break
            held = pa.concat_tables([held, following])
        while held.num_rows >= rows or (is_last and held.num_rows):
            group = held.slice(0, rows).combine_chunks()
            write(group)
            num_rows += group.num_rows
            num_groups += 1
            held = held.slice(rows)
    return num_rows, num_groups


def _rows_for(table: pa.Table) -> int:
    row_bytes = max(1, table.nbytes // table.num_rows)
    return int(min(MOST_ROWS, max(LEAST_ROWS, GROUP_BYTES // row_bytes)))


@contextmanager
def _whole(target: str) -> Iterator[str]:
    """Context in which a file is written that takes its name at the end."""
    temporary = f"{target}.{os.getpid()}.part"
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


@contextmanager
def _writer(
    path: str, format: str, schema: pa.Schema, compression: str
) -> Iterator[Callable[[pa.Table], None]]:
    """Context in which tables are written, each as one row group."""
    if format == "ipc":
        with pa.ipc.new_file(path, schema) as ipc:
            yield lambda table: ipc.write_table(table, max_chunksize=table.num_rows)
        return
    try:
        writer = pq.ParquetWriter(path, schema, compression=compression)
    except (pa.ArrowException, ValueError) as error:
        raise ConfigError(f"--compression {compression}: {in_one_line(error)}") from error
    with writer:
        yield lambda table: writer.write_table(table, row_group_size=table.num_rows)


# ---- what is read ----


def _tables(
    source: str,
    columns: Sequence[str] | None,
    types: Mapping[str, str] | None,
    image_size: tuple[int, int] | None,
) -> Iterator[pa.Table]:
    if os.path.isdir(source) and (images := _images_in(source)):
        yield from _image_tables(Path(source), images, image_size)
        return
    name = os.path.basename(source)
    is_csv = os.path.isfile(source) and any(end in name for end in (".csv", ".tsv"))
    if is_csv:
        yield from _csv_tables(source, columns, types)
        return
    opened = open_source(source, types=types)
    for column in columns or ():
        check_column(column, opened.schema.names, "--columns")
    names = list(columns or opened.schema.names)
    for piece in range(len(opened.pieces)):
        yield from opened.batches(piece, names)


def _csv_tables(
    source: str, columns: Sequence[str] | None, types: Mapping[str, str] | None
) -> Iterator[pa.Table]:
    with pa.input_stream(source) as stream:  # decompresses by the name
        header = stream.read(1 << 16).partition(b"\n")[0]
    chosen = {name: type_of(name, one) for name, one in (types or {}).items()}
    with pa.input_stream(source) as stream:
        reader = pa.csv.open_csv(
            stream,
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter_of(header), newlines_in_values=True
            ),
            convert_options=pa.csv.ConvertOptions(column_types=chosen),
        )
        for column in columns or ():
            check_column(column, reader.schema.names, "--columns")
        for batch in reader:
            table = with_nulls(pa.Table.from_batches([batch]))
            yield table.select(list(columns)) if columns else table


def _images_in(folder: str) -> list[Path]:
    return sorted(
        path
        for path in Path(folder).rglob("*")
        if path.suffix.lower() in IMAGES and not path.name.startswith(".")
    )


def _image_tables(
    folder: Path, images: list[Path], size: tuple[int, int] | None
) -> Iterator[pa.Table]:
    labels = sorted({path.parent.name for path in images})
    for start in range(0, len(images), IMAGES_AT_ONCE):
        paths = images[start : start + IMAGES_AT_ONCE]
        codes = pa.array([labels.index(path.parent.name) for path in paths], pa.int32())
        raw = (
            pa.array([path.read_bytes() for path in paths], pa.binary())
            if size is None
            else pa.FixedShapeTensorArray.from_numpy_ndarray(
                np.stack([_decoded(path, size) for path in paths])
            )
        )
        yield pa.table(
            {
                "image": raw,
                "label": pa.DictionaryArray.from_arrays(codes, pa.array(labels)),
                "path": [str(path.relative_to(folder)) for path in paths],
            }
        )


def _decoded(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingPackageError("pillow", "raylit data convert --image-size") from error
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((size[1], size[0])))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is no image that can be read: {error}. Take it out.") from error
