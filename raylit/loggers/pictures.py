"""Images and tables, of whatever kind users have them, in the forms that loggers can keep."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raylit.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

CHANNELS = (1, 3, 4)


def as_image(image: Any) -> Image:
    """Return an image of Pillow.

    Args:
        image: one, or an array or tensor of shape (H, W), (H, W, C) or (C, H, W): integers from 0
            to 255, or floats from 0 to 1.

    Raises:
        DataError: it has another shape.
    """
    import numpy as np
    from PIL import Image

    if isinstance(image, Image.Image):
        return image
    if hasattr(image, "detach"):
        image = image.detach().cpu().float() if image.is_floating_point() else image.detach().cpu()
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[0] in CHANNELS and array.shape[2] not in CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in CHANNELS:
        raise DataError(
            f"log_image was given an array of shape {tuple(np.shape(image))}. Give one of (H, W),"
            " (H, W, C) or (C, H, W), with 1, 3 or 4 channels."
        )
    if array.dtype == bool:
        array = array * 255
    elif array.dtype.kind == "f":
        array = np.nan_to_num(array) * 255
    array = np.clip(np.rint(array), 0, 255).astype(np.uint8)
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def as_json(table: object) -> str:
    """Return a table as the JSON that MLflow shows as one: names of columns, and rows.

    Args:
        table: a pandas DataFrame, or a mapping of columns to lists.

    Raises:
        DataError: the columns are not equally long, or it is something else.
    """
    if hasattr(table, "to_json"):
        return str(table.to_json(orient="split", index=False))
    names, rows = _rows(table)
    # JSON has no word for NaN and infinity; a page of MLflow's could not read the table
    finite = [
        [None if isinstance(one, float) and not math.isfinite(one) else one for one in row]
        for row in rows
    ]
    return json.dumps({"columns": names, "data": finite}, allow_nan=False)


def as_csv(table: object) -> str:
    """Return a table as CSV, with a line of names; see `as_json`."""
    if hasattr(table, "to_csv"):
        return str(table.to_csv(index=False))
    text = io.StringIO(newline="")
    names, rows = _rows(table)
    csv.writer(text).writerows([names, *rows])
    return text.getvalue()


def as_markdown(table: object) -> str:
    """Return a table as Markdown; see `as_json`."""
    if hasattr(table, "to_dict"):
        table = table.to_dict(orient="list")
    names, rows = _rows(table)
    lines: list[list[object]] = [[*names], ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _rows(table: object) -> tuple[list[str], list[list[object]]]:
    """Return the names of a table's columns, and its rows of plain values.

    Raises:
        DataError: the columns are not equally long, or it is no table.
    """
    if not isinstance(table, Mapping):
        raise DataError(
            f"log_table was given a {type(table).__name__}. Give a pandas DataFrame, or a dict of"
            " columns: {'name': ['a', 'b'], 'loss': [0.1, 0.2]}"
        )
    columns = [list(column) for column in table.values()]
    if len({len(column) for column in columns}) > 1:
        lengths = ", ".join(f"{name}: {len(column)}" for name, column in table.items())
        raise DataError(f"The columns of a table have different lengths ({lengths}).")
    rows = [[_plain(value) for value in row] for row in zip(*columns, strict=True)]
    return [*map(str, table)], rows


def _plain(value: object) -> object:
    if hasattr(value, "tolist"):  # a tensor or an array: of one element, its number
        value = value.tolist()
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
