"""Rows of Arrow IPC on local disk, mapped into memory.

The system reads the pages that are asked for and keeps those for which there is room.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raylit.data.arrow.columns import NUMPY, TENSOR_DTYPES, Field, Layout, Rows, gathered
from raylit.data.arrow.source import FileSource


class MappedRows:
    """Any rows of the files by number.

    Mapped anew in each process that reads, so that a fork shares nothing but the disk's cache.

    Columns of numbers as they lie on the disk, without nulls, are gathered by address: all those of
    a matrix at once. Arrow gathers the others.
    """

    def __init__(self, source: FileSource, layout: Layout) -> None:
        self.source = source
        self.layout = layout
        self._starts = np.append(0, np.cumsum([piece.num_rows for piece in source.pieces]))
        self._opened_by: int | None = None
        self._table: pa.Table = None  # before it is opened
        self._flat: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened_by": None, "_table": None, "_flat": {}}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _open(self) -> None:
        if self._opened_by == os.getpid():
            return
        tables = [
            self.source.read(number, self.layout.names) for number in range(len(self.source.pieces))
        ]
        self._table = pa.concat_tables(tables).select(self.layout.names)
        self._flat = {}
        for name, (dtype, columns) in self.layout.matrices.items():
            if all(
                column.kind == "number"
                and TENSOR_DTYPES.get(column.arrow) is dtype
                and column.name not in self.layout.encoding.scales
                for column in columns
            ):
                arrays = [self._table.column(column.source) for column in columns]
                if (
                    columns
                    and dtype is not torch.bool
                    and not any(array.null_count for array in arrays)
                ):
                    self._flat[name] = _addresses(arrays, np.dtype(NUMPY[dtype]))
        self._opened_by = os.getpid()

    def slice(self, start: int, num: int) -> Rows:
        """Return `num` rows from `start` on."""
        self._open()
        return self.layout.decode(
            self._table.slice(start, num), f"{self.source.name}, rows from {start:,} on"
        )

    def take(self, places: Tensor) -> Rows:
        """Return the rows of these numbers, in this order."""
        self._open()
        numbers = places.numpy()
        fields: dict[str, Field] = {}
        if self._flat:
            pieces = np.searchsorted(self._starts, numbers, side="right") - 1
            within = numbers - self._starts[pieces]
        for name, (memory, bases) in self._flat.items():
            fields[name] = torch.from_numpy(memory[bases[pieces] + within[:, None]])
        if len(fields) < len(self.layout.matrices) + len(self.layout.singles):
            rest = _without(self.layout, set(fields))
            table = pa.table({name: gathered(self._table[name], numbers) for name in rest.names})
            fields |= rest.decode(table, self.source.name).fields
        return Rows(fields, len(numbers))


def _without(layout: Layout, done: set[str]) -> Layout:
    rest = Layout(layout.form, layout.encoding, layout.float_dtype)
    rest.matrices = {name: matrix for name, matrix in layout.matrices.items() if name not in done}
    columns = [column for _, group in rest.matrices.values() for column in group] + rest.singles
    rest.names = list(dict.fromkeys(column.source for column in columns))
    return rest


def _addresses(arrays: list[pa.ChunkedArray], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return memory as one array, and where in it the values of each piece and column begin.

    It begins at the lowest of them; the memory between the files is never touched.
    """
    places = np.array(
        [
            [chunk.buffers()[1].address + chunk.offset * dtype.itemsize for chunk in array.chunks]
            for array in arrays
        ],
        dtype=np.int64,
    ).T
    lengths = [len(chunk) for chunk in arrays[0].chunks]
    low = int(places.min())
    high = max(
        int(row.max()) + length * dtype.itemsize
        for row, length in zip(places, lengths, strict=True)
    )
    memory = np.ctypeslib.as_array(
        (_c_type(dtype) * ((high - low) // dtype.itemsize)).from_address(low)
    )
    return memory, (places - low) // dtype.itemsize


def _c_type(dtype: np.dtype) -> Any:
    return np.ctypeslib.as_ctypes_type(dtype)
