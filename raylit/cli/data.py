"""`raylit data`: convert, describe and look at tables."""

from __future__ import annotations

import argparse
import time
from typing import NoReturn

from raylit.errors import ConfigError, did_you_mean

ACTIONS = ("convert", "describe", "head")
WIDEST = 24  # characters of a value


def run(args: list[str]) -> None:
    """Run `raylit data ACTION ...`.

    Raises:
        ConfigError: an argument is wrong.
        DataError: the data cannot be read.
    """
    action = args[0] if args else ""
    if action not in ACTIONS:
        raise ConfigError(
            f"raylit data {action or 'needs'}: say what to do.{did_you_mean(action, ACTIONS)} There"
            f" are: {', '.join(ACTIONS)}."
        )
    options = _parser(action).parse_args(args[1:])
    types = dict(one.partition("=")[::2] for one in options.type or ())
    if action == "convert":
        _convert(options, types)
    elif action == "describe":
        _describe(options.source, types)
    else:
        _head(options.source, options.rows, types)


def _parser(action: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=f"raylit data {action}", add_help=False, allow_abbrev=False)
    parser.add_argument("source")
    parser.add_argument("--type", action="append")
    parser.add_argument("--verbose", action="store_true")
    if action == "convert":
        parser.add_argument("target")
        parser.add_argument("--row-group-size", type=int)
        parser.add_argument("--compression", default="zstd")
        parser.add_argument("--columns")
        parser.add_argument("--image-size")
        parser.add_argument("--force", action="store_true")
    elif action == "head":
        parser.add_argument("-n", "--rows", type=int, default=5)
    return parser


def _convert(options: argparse.Namespace, types: dict[str, str]) -> None:
    from raylit.data.arrow.convert import convert

    start = time.monotonic()
    rows, groups = convert(
        options.source,
        options.target,
        row_group_size=options.row_group_size,
        compression=options.compression,
        columns=options.columns.split(",") if options.columns else None,
        types=types,
        image_size=_size(options.image_size),
        force=options.force,
    )
    print(
        f"{options.target}: {rows:,} rows in {groups:,} row group{'s' if groups != 1 else ''},"
        f" written in {time.monotonic() - start:.1f} s"
    )


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ConfigError(f"--image-size {text}: give height and width, such as 64x64.")
    return int(height), int(width)


def _describe(source: str, types: dict[str, str]) -> None:
    from raylit.data.arrow.describe import describe

    line, columns = describe(source, types)
    print(f"{line}\n")
    rows: list[tuple[str, ...]] = [("column", "type", "nulls", "values", "becomes")]
    rows += [(one.name, one.type, one.nulls, one.range, one.becomes) for one in columns]
    print(_table(rows))


def _head(source: str, num_rows: int, types: dict[str, str]) -> None:
    from raylit.data.arrow.describe import head

    if num_rows < 1:
        raise ConfigError(f"-n {num_rows}: give a whole number of at least 1.")
    table = head(source, num_rows, types)
    rows = [tuple(table.column_names)]
    rows += [tuple(_value(row[name]) for name in table.column_names) for row in table.to_pylist()]
    print(_table(rows))


def _value(value: object) -> str:
    if value is None:
        return "null"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= WIDEST else f"{text[: WIDEST - 3]}..."


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of printing its usage and ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message.removeprefix('argument ')}.")
