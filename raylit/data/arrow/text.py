"""CSV and JSON lines in runs of lines, so that they can be read from the middle and in parts."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from raylit.errors import DataError

NEWLINE_FORMATS = ("csv", "json")
BLOCK_BYTES = 8 << 20


class TextReader:
    """Finds the lines of a text and parses runs of them.

    A line is a row, so no value may hold a line break.

    Args:
        format: `csv` or `json`.
        types: of columns, by name; the others are inferred from the first block of the first file.
    """

    def __init__(self, format: str, types: Mapping[str, object] | None) -> None:
        self.format = format
        self.types = {name: type_of(name, one) for name, one in (types or {}).items()}

    def look(
        self, stream: pa.NativeFile, name: str
    ) -> tuple[pa.Schema, str, list[tuple[int, int, int]]]:
        """Return the columns, the delimiter, and start, stop and number of rows of each block.

        Raises:
            DataError: it has no rows, or its first block cannot be understood.
        """
        blocks: list[tuple[int, int, int]] = []
        schema = header = None
        for start, text in _cut(stream):
            if header is None and self.format == "csv":
                header, _, text_after = text.partition(b"\n")
                start = start + len(header) + 1
                text = text_after
            if schema is None and text.strip():
                schema = self._infer(text, header, name)
            if count := sum(1 for line in text.split(b"\n") if line.strip(b"\r")):
                blocks.append((start, start + len(text), count))
        if schema is None or not blocks:
            raise DataError(
                f"{name} has no rows{' below its header' if header else ''}. Take it out, or write"
                " it again."
            )
        return schema, delimiter_of(header or b""), blocks

    def _infer(self, text: bytes, header: bytes | None, name: str) -> pa.Schema:
        try:
            if self.format == "json":
                known = pa.schema(list(self.types.items())) if self.types else None
                options = pa.json.ParseOptions(explicit_schema=known)
                return pa.json.read_json(io.BytesIO(text), parse_options=options).schema
            assert header is not None
            parse = pa.csv.ParseOptions(delimiter=delimiter_of(header))
            convert = pa.csv.ConvertOptions(column_types=self.types)
            return pa.csv.read_csv(
                io.BytesIO(header + b"\n" + text), parse_options=parse, convert_options=convert
            ).schema
        except pa.ArrowException as error:
            hint = ""
            if self.format == "json" and text.lstrip().startswith(b"["):
                hint = " It begins as one array: write an object on each line instead."
            raise DataError(f"{name} is not understood as {self.format}: {error}{hint}") from error

    def parse(self, text: bytes, schema: pa.Schema, delimiter: str, where: str) -> pa.Table:
        """Return a block as a table.

        Raises:
            DataError: a value does not fit the type of its column.
        """
        try:
            if self.format == "json":
                options = pa.json.ParseOptions(
                    explicit_schema=schema, unexpected_field_behavior="error"
                )
                return pa.json.read_json(io.BytesIO(text), parse_options=options).select(
                    schema.names
                )
            read = pa.csv.ReadOptions(column_names=schema.names)
            convert = pa.csv.ConvertOptions(column_types=schema)
            parse = pa.csv.ParseOptions(delimiter=delimiter)
            return with_nulls(
                pa.csv.read_csv(
                    io.BytesIO(text),
                    read_options=read,
                    parse_options=parse,
                    convert_options=convert,
                )
            )
        except pa.ArrowException as error:
            raise DataError(
                f"{where} does not fit the columns that the first block has: {error}. Name the"
                f" right type: types={{'column': 'float64'}}."
            ) from error


def with_nulls(table: pa.Table) -> pa.Table:
    """Return a table of CSV whose empty texts are nulls, as empty numbers are.

    Arrow's own way to do that would take the text NA for one too.
    """
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            column = table.column(index)
            is_empty = pc.equal(column, "")
            if pc.any(is_empty).as_py():
                filled = pc.if_else(is_empty, pa.scalar(None, field.type), column)
                table = table.set_column(index, field, filled)
    return table


def delimiter_of(header: bytes) -> str:
    """Return the delimiter of a CSV, by its first line."""
    return "\t" if b"\t" in header and b"," not in header else ","


def _cut(stream: pa.NativeFile) -> Iterator[tuple[int, bytes]]:
    """Return a text in blocks that end with a line, each with its place."""
    start = 0
    rest = b""
    while more := stream.read(BLOCK_BYTES):
        text = rest + more
        end = text.rfind(b"\n") + 1
        if end:
            yield start, text[:end]
            start = start + end
            rest = text[end:]
        else:
            rest = text
    if rest:
        yield start, rest


def type_of(name: str, one: object) -> pa.DataType:
    """Return a type of Arrow's by its name.

    Raises:
        DataError: there is none.
    """
    try:
        return one if isinstance(one, pa.DataType) else pa.type_for_alias(one)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"types={{{name!r}: {one!r}}} names no type of Arrow's. Use 'float64', 'int32',"
            " 'string' or another."
        ) from error
