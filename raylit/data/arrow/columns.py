"""From columns of Arrow to tensors.

integers                      int64
floating point, decimals      the float dtype, float32 unless told otherwise
booleans                      bool
timestamps, dates, times      float64: seconds, since 1970 where they have a date
fixed-size lists, tensors     a tensor of that shape; bytes stay uint8, as images are
dictionaries, `categories=`   int64: 0 for unknown values, the vocabulary from 1 on
lists of numbers              padded, with lengths, or nested
strings, bytes, all else      Python objects, for `transform` or `collate_fn`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from raylit.data.arrow.source import check_column
from raylit.errors import ConfigError, DataError
from raylit.runtime.aliases import Batch
from raylit.runtime.messages import warn_once

Kind = Literal["number", "category", "tensor", "list", "object", "mask"]
Field = Any  # a Tensor, or a ChunkedArray of pyarrow's, which ships no types
Columns: TypeAlias = dict[str, Any]  # by name: tensors, lists of Python's objects
BatchForm: TypeAlias = Any  # `dict`, `tuple`, or a dataclass
BLOCK_ROWS = 4096  # that become a matrix at a time: of 20 columns so many stay in a cache
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
TENSOR_DTYPES: dict[pa.DataType, torch.dtype] = {
    pa.bool_(): torch.bool,
    pa.int8(): torch.int8,
    pa.int16(): torch.int16,
    pa.int32(): torch.int32,
    pa.int64(): torch.int64,
    pa.uint8(): torch.uint8,
    pa.uint16(): torch.int32,
    pa.uint32(): torch.int64,
    pa.uint64(): torch.int64,
    pa.float16(): torch.float16,
    pa.float32(): torch.float32,
}
NUMPY = {
    torch.bool: np.bool_,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
    torch.float16: np.float16,
    torch.float32: np.float32,
    torch.float64: np.float64,
}


@dataclass(frozen=True)
class Column:
    """The form that one column takes in a batch.

    Attributes:
        name: as the batch has it.
        source: the column it is made of; another only for a mask.
        kind: how it is made.
        arrow: the type it has.
        dtype: the type it gets; None for objects.
        shape: of one row.
        nulls: `error`, `nan`, `mean`, `mask`, or a value that takes their place.
        element: type of the elements of a list or tensor.
    """

    name: str
    source: str
    kind: Kind
    arrow: pa.DataType
    dtype: torch.dtype | None
    shape: tuple[int, ...] = ()
    nulls: object = "error"
    element: pa.DataType | None = None

    @property
    def row_bytes(self) -> int:
        """How many bytes a row takes as a tensor; for lists and objects a guess."""
        if self.dtype is None or self.kind == "list":
            return 64
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


def column_of(
    field: pa.Field, nulls: object, is_category: bool, float_dtype: torch.dtype
) -> Column:
    """Return the `Column` that a field becomes by its type alone.

    Raises:
        DataError: nothing can be made of it, or its nulls cannot be treated so.
    """
    type_ = field.type
    name = field.name
    element, shape = _tensor_type(type_)
    if is_category and pa.types.is_nested(type_):
        raise ConfigError(
            f"categories= names {name!r}, which is {type_}: only single values get codes. Let"
            " transform= or collate_fn= make something of it."
        )
    if is_category or pa.types.is_dictionary(type_):
        column = Column(name, name, "category", type_, torch.int64, nulls=nulls)
    elif shape:
        if element not in TENSOR_DTYPES and not _is_wide_float(element):
            column = Column(name, name, "object", type_, None, nulls=nulls)
        else:
            column = Column(
                name,
                name,
                "tensor",
                type_,
                TENSOR_DTYPES.get(element, float_dtype),
                shape,
                nulls,
                element,
            )
    elif _is_list(type_) and (
        type_.value_type in TENSOR_DTYPES or _is_wide_float(type_.value_type)
    ):
        dtype = TENSOR_DTYPES.get(type_.value_type, float_dtype)
        column = Column(name, name, "list", type_, dtype, nulls=nulls, element=type_.value_type)
    elif (scalar := _scalar_dtype(type_, nulls, float_dtype)) is not None:
        column = Column(name, name, "number", type_, scalar, nulls=nulls)
    else:
        column = Column(name, name, "object", type_, None, nulls=nulls)
    _check_nulls_policy(column)
    return column


def _scalar_dtype(
    type_: pa.DataType, nulls: object, float_dtype: torch.dtype
) -> torch.dtype | None:
    if pa.types.is_temporal(type_) and not pa.types.is_interval(type_):
        return torch.float64
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return float_dtype
    if pa.types.is_boolean(type_) or pa.types.is_integer(type_):
        if nulls in ("nan", "mean") or isinstance(nulls, float):
            return float_dtype
        stays_bool = isinstance(nulls, bool) or not isinstance(nulls, int)
        return torch.bool if pa.types.is_boolean(type_) and stays_bool else torch.int64
    return None


def _check_nulls_policy(column: Column) -> None:
    policy = column.nulls
    if isinstance(policy, str) and policy not in ("error", "nan", "mean", "mask"):
        if column.kind == "object":
            return
        raise ConfigError(
            f"nulls={policy!r} of the column {column.name!r} is not known. Use 'error', 'nan',"
            " 'mean', 'mask', or a number that takes their place."
        )
    if policy == "mean" and column.kind != "number":
        raise ConfigError(
            f"nulls='mean' of the column {column.name!r}: a {column.arrow} has no mean. Use"
            " 'error', 'mask' or a value."
        )
    is_integer = column.element is not None and not pa.types.is_floating(column.element)
    if policy == "nan" and is_integer:
        raise ConfigError(
            f"nulls='nan' of the column {column.name!r}: a {column.arrow} has no NaN. Use 'error',"
            " 'mask' or a value."
        )
    if not isinstance(policy, str) and column.kind in ("number", "tensor", "list"):
        _check_value(column)


def _check_value(column: Column) -> None:
    """See that a value that takes the place of nulls is one that the column can hold."""
    value = column.nulls
    type_ = column.element or column.arrow
    fits = isinstance(value, (int, float)) and (
        pa.types.is_boolean(type_) or not isinstance(value, bool)
    )
    if fits:
        filled = _filled_type(column, value)
        try:
            held = pa.scalar(value, filled).as_py()
            fits = pa.types.is_floating(filled) or held == value
        except (pa.ArrowException, OverflowError):
            fits = False
    if not fits:
        raise ConfigError(
            f"nulls={value!r} of the column {column.name!r}: a {column.arrow} cannot hold that."
            " Use 'error', 'mask' or another value."
        )


def _filled_type(column: Column, fill: object) -> pa.DataType:
    """Return the type that a column has while `fill` takes the place of its nulls."""
    type_ = column.arrow
    if column.element is not None:
        return column.element
    if pa.types.is_floating(type_) or (pa.types.is_uint64(type_) and isinstance(fill, int)):
        return type_
    if isinstance(fill, float) or pa.types.is_temporal(type_) or pa.types.is_decimal(type_):
        return pa.float64()
    if isinstance(fill, bool):
        return pa.bool_()
    return pa.int64()  # which the tensor has, and the fill may need


def _is_wide_float(type_: pa.DataType) -> bool:
    return bool(pa.types.is_float64(type_))


def _is_list(type_: pa.DataType) -> bool:
    return bool(pa.types.is_list(type_) or pa.types.is_large_list(type_))


def _tensor_type(type_: pa.DataType) -> tuple[pa.DataType, tuple[int, ...]]:
    """Return the type of the elements and the shape, empty if it is none of a fixed shape."""
    if isinstance(type_, pa.FixedShapeTensorType):
        return type_.value_type, tuple(type_.shape)
    shape: list[int] = []
    while pa.types.is_fixed_size_list(type_):
        shape.append(type_.list_size)
        type_ = type_.value_type
    return type_, tuple(shape)


# ---- values of one column ----


@dataclass(frozen=True)
class Encoding:
    """The part of the columns' form that depends on the data.

    Vocabularies by column, and (mean, standard deviation) of those that have one.

    Attributes:
        vocabulary: the values of each category, in order.
        means: of the columns whose nulls become their mean.
        scales: mean and standard deviation of the columns that are normalized.
    """

    vocabulary: Mapping[str, Sequence[object]] = dataclasses.field(default_factory=dict)
    means: Mapping[str, float] = dataclasses.field(default_factory=dict)
    scales: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


def values(column: Column, array: pa.ChunkedArray, encoding: Encoding, where: str) -> np.ndarray:
    """Return a column of numbers, categories or tensors as numpy has them.

    Raises:
        DataError: there are nulls, or a number that is too large.
    """
    if column.kind == "mask":
        is_null: np.ndarray = array.is_null().to_numpy()
        return is_null
    if array.null_count and column.nulls == "error":
        first = pc.index(array.is_null(), True).as_py()
        raise DataError(
            f"The column {column.name!r} has {array.null_count:,} nulls in {where} (the first is"
            f" its row {first:,}). Say what to do with them:"
            f" nulls={{{column.name!r}: 'nan'}}, 'mean', 'mask' or a value; or leave these rows"
            " out with filters=."
        )
    if column.kind == "category":
        return _codes(column, array, encoding.vocabulary[column.name])
    if column.kind == "tensor":
        found = _tensors(column, array, where)
    else:
        found = _numbers(column, array, encoding, where)
        if pa.types.is_integer(column.arrow) and column.name not in encoding.scales:
            _tell_rounding(column, found)
    if column.name in encoding.scales:
        mean, std = encoding.scales[column.name]
        found = (found.astype(np.float64) - mean) / std
        if column.nulls == "mask" and array.null_count:
            found[array.is_null().to_numpy()] = 0.0
    return found


def _numbers(column: Column, array: pa.ChunkedArray, encoding: Encoding, where: str) -> np.ndarray:
    if pa.types.is_temporal(array.type):
        ticks, factor = _ticks(array)
        array = pc.multiply(ticks.cast(pa.float64(), safe=False), factor)
    elif pa.types.is_decimal(array.type):
        array = array.cast(pa.float64())
    if array.null_count:
        fill = encoding.means[column.name] if column.nulls == "mean" else _fill(column)
        array = array.cast(_filled_type(column, fill), safe=False)
        array = pc.fill_null(array, pa.scalar(fill, array.type))
    found = array.to_numpy()
    if found.dtype == np.uint64 and len(found) and found.max() > np.uint64(2**63 - 1):
        raise DataError(
            f"The column {column.name!r} holds {found.max()} in {where}, which is more than the"
            " int64 of a tensor can hold."
        )
    return found  # type: ignore[no-any-return]


def _tell_rounding(column: Column, found: np.ndarray) -> None:
    """Warn of whole numbers that the treatment of nulls makes floats, which round them."""
    if column.dtype is None or not column.dtype.is_floating_point or not len(found):
        return
    largest = 2 / torch.finfo(column.dtype).eps  # up to it each whole number is itself
    if np.nanmax(found) > largest or np.nanmin(found) < -largest:
        warn_once(
            f"The whole numbers of the column {column.name!r} become {column.dtype}, because of"
            f" nulls={column.nulls!r}, which rounds them from {largest:,.0f} on. If it holds no"
            f" nulls, or if they are ids, give it a treatment of its own:"
            f" nulls={{{column.name!r}: 'error'}}, 'mask' or a whole number."
        )


def _ticks(array: pa.ChunkedArray) -> tuple[pa.ChunkedArray, float]:
    """Return times as whole numbers, and how many seconds each is."""
    type_ = array.type
    if pa.types.is_date32(type_):
        return array.cast(pa.int32()).cast(pa.int64()), 86_400.0
    if pa.types.is_date64(type_):
        return array.cast(pa.int64()), 1e-3
    whole = pa.int32() if pa.types.is_time32(type_) else pa.int64()
    return array.cast(whole).cast(pa.int64()), SECONDS[type_.unit]


def _codes(column: Column, array: pa.ChunkedArray, vocabulary: Sequence[object]) -> np.ndarray:
    value_type = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    known = pa.array(vocabulary, value_type)
    if not pa.types.is_dictionary(array.type):
        codes = pc.index_in(array, value_set=known)
        codes = pc.add(pc.fill_null(codes, pa.scalar(-1, pa.int32())), 1)
        by_value: np.ndarray = codes.to_numpy()
        return by_value
    found = np.zeros(len(array), np.int64)
    start = 0
    for chunk in array.chunks:
        # Each chunk may have a dictionary of its own, with other codes
        places = pc.fill_null(
            pc.index_in(chunk.dictionary, value_set=known), pa.scalar(-1, pa.int32())
        ).to_numpy()
        by_index = np.append(places + 1, 0)  # the last is for nulls
        indices = pc.fill_null(chunk.indices.cast(pa.int64()), len(places)).to_numpy()
        found[start : start + len(chunk)] = by_index[indices]
        start += len(chunk)
    return found


def _tensors(column: Column, array: pa.ChunkedArray, where: str) -> np.ndarray:
    assert column.element is not None
    stored = TENSOR_DTYPES.get(column.element, torch.float64)
    found: np.ndarray = np.empty((len(array), *column.shape), NUMPY[stored])
    start = 0
    for chunk in array.chunks:
        part: np.ndarray = found[start : start + len(chunk)]
        start += len(chunk)
        flat = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
        is_valid = flat.is_valid().to_numpy(zero_copy_only=False) if flat.null_count else None
        if is_valid is not None:
            part[:] = _fill(column)
        while pa.types.is_fixed_size_list(flat.type):
            flat = flat.flatten()  # leaves nulls out
        if flat.null_count:
            _check_within(column, flat.null_count, where)
            flat = pc.fill_null(flat, pa.scalar(_fill(column), flat.type))
        shaped = flat.to_numpy(zero_copy_only=False).reshape(-1, *column.shape)
        if is_valid is None:
            part[:] = shaped
        else:
            part[is_valid] = shaped
    return found


def _check_within(column: Column, num_nulls: int, where: str) -> None:
    """Refuse nulls within lists and tensors for which no treatment was given."""
    if num_nulls and column.nulls == "error":
        assert column.element is not None
        how = "a value" if pa.types.is_integer(column.element) else "'nan' or a value"
        raise DataError(
            f"The column {column.name!r} has {num_nulls:,} nulls within its lists in {where}. Say"
            f" what to do with them, with nulls={{{column.name!r}: ...}}: {how}; or write them"
            " anew."
        )


def _fill(column: Column) -> object:
    if column.nulls == "nan":
        return float("nan")
    if isinstance(column.nulls, str):
        # Arrow takes no 0 for a False
        return False if pa.types.is_boolean(column.element or column.arrow) else 0
    return column.nulls


# ---- rows of several columns ----


class Rows:
    """Some rows, as matrices, tensors and arrays of Arrow's by name, each with one entry a row."""

    __slots__ = ("fields", "num")

    def __init__(self, fields: dict[str, Field], num: int) -> None:
        self.fields = fields
        self.num = num

    def __len__(self) -> int:
        return self.num

    def take(self, places: Tensor) -> Rows:
        """Return the rows at these places, in this order."""
        fields: dict[str, Field] = {}
        for name, field in self.fields.items():
            if isinstance(field, Tensor):
                # a quarter of the time of field[places]; the places are of our own making
                taken = field.numpy().take(places.numpy(), axis=0, mode="clip")
                fields[name] = torch.from_numpy(taken)
            else:
                fields[name] = gathered(field, places.numpy())
        return Rows(fields, len(places))

    def slice(self, start: int, num: int) -> Rows:
        """Return `num` rows from `start` on, without a copy."""
        fields: dict[str, Field] = {
            name: field.narrow(0, start, num)
            if isinstance(field, Tensor)
            else field.slice(start, num)
            for name, field in self.fields.items()
        }
        return Rows(fields, num)

    def copy(self) -> Rows:
        """Return the same rows in memory of their own."""
        fields: dict[str, Field] = {
            name: field.clone()
            if isinstance(field, Tensor)
            else field.take(pa.array(range(self.num)))
            for name, field in self.fields.items()
        }
        return Rows(fields, self.num)

    @property
    def nbytes(self) -> int:
        """How much memory the rows take."""
        return sum(field.nbytes for field in self.fields.values())


def gathered(field: Field, places: np.ndarray) -> Field:
    """Return the values of an array of Arrow's at these places, in this order.

    Arrow's own `take` makes one array of all chunks first, which copies all of them for a single
    row, and fails where they hold more than 2 GB of text or bytes.
    """
    if not len(places):
        return field.slice(0, 0)
    lengths = [len(chunk) for chunk in field.chunks]
    ends = np.cumsum(lengths)
    chunk_of = np.searchsorted(ends, places, side="right")
    by_chunk = np.argsort(chunk_of, kind="stable")
    within = pa.array((places - (ends - lengths)[chunk_of])[by_chunk])
    numbers, starts = np.unique(chunk_of[by_chunk], return_index=True)
    parts = [
        field.chunk(number).take(within.slice(start, num))
        for number, start, num in zip(
            numbers.tolist(),
            starts.tolist(),
            np.diff(starts, append=len(places)).tolist(),
            strict=True,
        )
    ]
    if len(parts) == 1:
        return pa.chunked_array(parts)
    together = pa.concat_arrays(parts)
    del parts  # which would be a third copy
    return pa.chunked_array([together.take(pa.array(np.argsort(by_chunk)))])


def concat(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    fields: dict[str, Field] = {}
    for name, field in parts[0].fields.items():
        if isinstance(field, Tensor):
            fields[name] = torch.cat([one.fields[name] for one in parts])
        else:
            fields[name] = pa.chunked_array(
                [chunk for one in parts for chunk in one.fields[name].chunks], field.type
            )
    return Rows(fields, sum(map(len, parts)))


def joined(parts: Iterable[Rows], num: int) -> Rows:
    """Return the rows of all parts, one after the other.

    Each part is let go of before the next is made.

    Args:
        parts: the rows.
        num: how many there are in all.
    """
    fields: dict[str, Field] = {}
    arrays: dict[str, list[object]] = {}
    types: dict[str, object] = {}
    done = 0
    for rows in parts:
        for name, field in rows.fields.items():
            if not isinstance(field, Tensor):
                arrays.setdefault(name, []).extend(field.chunks)
                types[name] = field.type
                continue
            if name not in fields:
                fields[name] = torch.empty((num, *field.shape[1:]), dtype=field.dtype)
            fields[name][done : done + len(rows)] = field
        done += len(rows)
        del rows
    for name, chunks in arrays.items():
        fields[name] = pa.chunked_array(chunks, types[name])
    return Rows(fields, done)


@dataclass(frozen=True)
class Form:
    """How a batch is put together.

    Attributes:
        columns: all that are read, in order.
        features: the names that make x of a tuple.
        target: the names that make y.
        as_: `dict`, `tuple`, or a dataclass.
        normalized: columns from which their mean is taken, and which are divided by their standard
            deviation.
        lists: `padded` or `nested`: how lists of varying length come.
        transform: changes a dict of columns, before it is put together; or None.
        collate_fn: makes the batch of a dict of columns instead; or None.
    """

    columns: tuple[Column, ...]
    features: tuple[str, ...]
    target: tuple[str, ...]
    as_: BatchForm = "dict"
    normalized: tuple[str, ...] = ()
    lists: str = "padded"
    transform: Callable[[Columns], Columns] | None = None
    collate_fn: Callable[[Columns], Batch] | None = None

    @property
    def runs_user_code(self) -> bool:
        """Whether a batch goes through a function of the user's."""
        return self.transform is not None or self.collate_fn is not None


class Layout:
    """How rows lie in memory, from the file to the batch.

    Columns of one type side by side in a matrix, so that a row is read at one place.

    Args:
        form: how a batch is put together.
        encoding: vocabularies and statistics.
        float_dtype: of features that are stacked.
    """

    def __init__(self, form: Form, encoding: Encoding, float_dtype: torch.dtype) -> None:
        self.form = form
        self.encoding = encoding
        self.float_dtype = float_dtype
        self.names = list(dict.fromkeys(column.source for column in form.columns))
        by_name = {column.name: column for column in form.columns}
        scalars = [
            column
            for column in form.columns
            if column.dtype is not None and not column.shape and column.kind != "list"
        ]
        groups: dict[str, tuple[torch.dtype, list[Column]]] = {}
        self.is_stacked = (
            form.as_ == "tuple"
            and not form.runs_user_code
            and {*form.features, *form.target} <= {one.name for one in scalars}
        )
        if self.is_stacked:
            for name, names in (("x", form.features), ("y", form.target)):
                if not names:
                    continue
                chosen = [by_name[one] for one in names]
                groups[name] = stacked_dtype([one.dtype for one in chosen], float_dtype), chosen
        else:
            for column in scalars:
                assert column.dtype is not None
                groups.setdefault(f" {column.dtype}", (column.dtype, []))[1].append(column)
        self.matrices = groups
        self.singles = (
            [] if self.is_stacked else [column for column in form.columns if column not in scalars]
        )

    @property
    def row_bytes(self) -> int:
        """How many bytes a row takes; of lists and objects a guess."""
        matrices = sum(dtype.itemsize * len(columns) for dtype, columns in self.matrices.values())
        return max(1, matrices + sum(column.row_bytes for column in self.singles))

    # ---- a table becomes rows ----

    def decode(self, table: pa.Table, where: str) -> Rows:
        """Return the rows of a table of Arrow's.

        Raises:
            DataError: there are nulls where there may be none, or values that no tensor can hold.
        """
        fields: dict[str, Field] = {}
        for name, (dtype, columns) in self.matrices.items():
            found = [
                values(column, table.column(column.source), self.encoding, where)
                for column in columns
            ]
            fields[name] = torch.from_numpy(_side_by_side(found, NUMPY[dtype], table.num_rows))
        for column in self.singles:
            array = table.column(column.source)
            if column.kind == "tensor":
                assert column.dtype is not None
                made = values(column, array, self.encoding, where)
                fields[column.name] = torch.from_numpy(made.astype(NUMPY[column.dtype], copy=False))
                continue
            if array.null_count and column.nulls == "error":
                values(column, array, self.encoding, where)  # says so
            if column.kind == "list":
                _check_within(column, pc.list_flatten(array).null_count, where)
            fields[column.name] = array
        return Rows(fields, table.num_rows)

    # ---- rows become batches ----

    def finish(self, rows: Rows, pin: bool) -> Rows:
        """Bring rows into the form in which batches are cut off them.

        A column of a dict is to lie in one piece.
        """
        fields: dict[str, Field] = {}
        for name, field in rows.fields.items():
            if name in self.matrices:
                if not self.is_stacked:
                    field = field.t().contiguous()
                elif name == "y" and field.shape[1] == 1:
                    field = field.squeeze(1)
            fields[name] = field.pin_memory() if pin and isinstance(field, Tensor) else field
        return Rows(fields, rows.num)

    def batches(self, rows: Rows, size: int) -> Iterator[Batch]:
        """Cut rows that `finish` returned into batches; the last may be short."""
        fields = rows.fields
        if self.is_stacked and "y" in fields:
            yield from zip(fields["x"].split(size), fields["y"].split(size), strict=True)
            return
        for start in range(0, len(rows), size):
            yield self.batch(rows, start, min(start + size, len(rows)))

    def batch(self, rows: Rows, start: int, stop: int) -> Batch:
        """Return the rows from `start` to `stop`, as `finish` gave them, as the user's batch."""
        fields = rows.fields
        if self.is_stacked:
            if "y" not in fields:
                return (fields["x"][start:stop],)
            return fields["x"][start:stop], fields["y"][start:stop]
        found: dict[str, object] = {}
        for name, (_, columns) in self.matrices.items():
            part = fields[name][:, start:stop].unbind(0)
            for column, one in zip(columns, part, strict=True):
                found[column.name] = one
        for column in self.singles:
            field = fields[column.name]
            if column.kind == "tensor":
                found[column.name] = field[start:stop]
            elif column.kind == "list":
                found.update(self._ragged(column, field.slice(start, stop - start)))
            else:
                found[column.name] = field.slice(start, stop - start).to_pylist()
        return self.put_together(
            {column.name: found[column.name] for column in self.form.columns} | found
        )

    def put_together(self, found: Columns) -> Batch:
        """Make the batch of a dict of columns."""
        form = self.form
        if form.transform is not None:
            found = form.transform(found)
            if not isinstance(found, Mapping):
                raise ConfigError(
                    f"transform returned a {type(found).__name__}. It gets a dict of columns, and"
                    " is to return one."
                )
        if form.collate_fn is not None:
            return form.collate_fn(found)
        if form.as_ == "tuple":
            return tuple(
                stack([found[name] for name in names], self.float_dtype, is_x)
                for names, is_x in ((form.features, True), (form.target, False))
                if names
            )
        if form.as_ == "dict":
            return found
        wanted = {field.name for field in dataclasses.fields(form.as_) if field.init}
        return form.as_(**{name: value for name, value in found.items() if name in wanted})

    def _ragged(self, column: Column, array: pa.ChunkedArray) -> dict[str, Tensor]:
        whole = array.combine_chunks()
        assert column.dtype is not None
        lengths = pc.fill_null(pc.list_value_length(whole), 0).to_numpy().astype(np.int64)
        flat = whole.flatten()
        if flat.null_count:
            flat = pc.fill_null(flat, pa.scalar(_fill(column), flat.type))
        found = torch.from_numpy(flat.to_numpy(zero_copy_only=False).astype(NUMPY[column.dtype]))
        if self.form.lists == "nested":
            offsets = torch.from_numpy(np.append(0, lengths.cumsum()))
            return {column.name: torch.nested.nested_tensor_from_jagged(found, offsets)}
        longest = int(lengths.max(initial=0))
        padded = torch.zeros((len(lengths), longest), dtype=column.dtype)
        padded[torch.arange(longest) < torch.from_numpy(lengths)[:, None]] = found
        return {column.name: padded, f"{column.name}_length": torch.from_numpy(lengths)}


def stacked_dtype(dtypes: Sequence[torch.dtype | None], float_dtype: torch.dtype) -> torch.dtype:
    """Return the type of several columns side by side.

    Int64 if all are whole numbers, their own if there is one, else the float dtype.
    """
    kinds = set(dtypes)
    if kinds == {torch.int64} or (len(dtypes) == 1 and dtypes[0] in (torch.bool, torch.float64)):
        return dtypes[0] or float_dtype
    return float_dtype


def stack(columns: Sequence[Any], float_dtype: torch.dtype, is_x: bool) -> object:
    """Put columns side by side, as x or y of a batch.

    A single one is left as it is, but for a vector of features, which becomes a column.
    """
    if len(columns) == 1:
        only = columns[0]
        return only[:, None] if is_x and isinstance(only, Tensor) and only.ndim == 1 else only
    if any(not isinstance(one, Tensor) or one.ndim > 2 or one.is_nested for one in columns):
        raise ConfigError(
            "batch='tuple' puts features side by side, which needs numbers and vectors. Take"
            " batch='dict' where images, lists or objects are among"
            " them, or let collate_fn make the batch."
        )
    dtype = stacked_dtype([one.dtype for one in columns], float_dtype)
    return torch.cat([(one[:, None] if one.ndim == 1 else one).to(dtype) for one in columns], 1)


def _side_by_side(
    columns: Sequence[np.ndarray], dtype: type[np.generic], num_rows: int
) -> np.ndarray:
    found = np.empty((num_rows, len(columns)), dtype)
    for start in range(0, num_rows, BLOCK_ROWS):
        stop = start + BLOCK_ROWS
        for place, column in enumerate(columns):
            found[start:stop, place] = column[start:stop]
    return found


# ---- what the user asks for ----


def form_of(
    schema: pa.Schema,
    *,
    columns: Sequence[str] | None,
    features: Sequence[str] | None,
    target: str | Sequence[str] | None,
    batch: BatchForm,
    categories: Sequence[str],
    nulls: object,
    normalize: bool | Sequence[str],
    lists: str,
    float_dtype: torch.dtype,
    transform: Callable[[Columns], Columns] | None,
    collate_fn: Callable[[Columns], Batch] | None,
) -> Form:
    """Return the form of a batch, once all names and types are seen to fit.

    Raises:
        DataError: there is no such column, or one of a type that has no form as a tensor.
        ConfigError: arguments contradict each other.
    """
    targets = [target] if isinstance(target, str) else list(target or ())
    _check_names(schema, columns=columns, features=features, target=targets, categories=categories)
    is_dataclass = isinstance(batch, type) and dataclasses.is_dataclass(batch)
    if not is_dataclass and batch not in ("dict", "tuple"):
        raise ConfigError(f"batch={batch!r} is not known. Use 'dict', 'tuple' or a dataclass.")
    if lists not in ("padded", "nested"):
        raise ConfigError(f"lists={lists!r} is not known. Use 'padded' or 'nested'.")
    chosen = _chosen(schema, columns, features, targets)
    policies = dict(nulls) if isinstance(nulls, Mapping) else {"*": nulls}
    for name in policies:
        if name != "*":
            check_column(name, schema.names, "nulls")
    is_plain_tuple = batch == "tuple" and transform is None and collate_fn is None
    made: list[Column] = []
    for name in chosen:
        policy = policies.get(name, policies.get("*", "error"))
        if policy == "mask" and name in targets and is_plain_tuple:
            if name in policies:
                raise ConfigError(
                    f"nulls={{{name!r}: 'mask'}} of a target: a batch of (x, y) has no place for"
                    " its mask. Use batch='dict', or leave these rows out with filters=."
                )
            policy = "error"
        column = column_of(schema.field(name), policy, name in categories, float_dtype)
        if column.kind == "object" and transform is None and collate_fn is None:
            codes = f"Give it a code with categories=[{name!r}], let"
            raise DataError(
                f"The column {name!r} is {column.arrow}, which has no form as a tensor."
                f" {'Let' if pa.types.is_nested(column.arrow) else codes} transform= or"
                " collate_fn= make something of it, or leave it out:"
                f" columns={[one for one in chosen if one != name][:4]!r}."
            )
        made.append(column)
        if column.nulls == "mask":
            mask = Column(f"{name}_is_null", name, "mask", pa.bool_(), torch.bool, nulls="mask")
            made.append(mask)
    masks = {column.source: column.name for column in made if column.kind == "mask"}
    given = [name for name in chosen if name not in targets] if features is None else features
    wide = [one for name in given for one in (name, masks.get(name)) if one is not None]
    if batch == "tuple" and not wide:
        raise ConfigError("batch='tuple' needs features: name them with features=[...].")
    normalized = _normalized(made, normalize, targets)
    made = [
        dataclasses.replace(one, dtype=float_dtype) if one.name in normalized else one
        for one in made
    ]
    if is_dataclass and transform is None and collate_fn is None:
        _check_dataclass(batch, made)
    return Form(
        columns=tuple(made),
        features=tuple(wide),
        target=tuple(targets),
        as_=batch,
        normalized=normalized,
        lists=lists,
        transform=transform,
        collate_fn=collate_fn,
    )


def _check_names(schema: pa.Schema, **given: Sequence[str] | None) -> None:
    for argument, names in given.items():
        if isinstance(names, str):
            raise ConfigError(
                f"{argument}={names!r} is a string. Give a list of names: {argument}=[{names!r}]."
            )
        for name in names or ():
            check_column(name, schema.names, argument)


def _chosen(
    schema: pa.Schema,
    columns: Sequence[str] | None,
    features: Sequence[str] | None,
    targets: Sequence[str],
) -> list[str]:
    """Return the columns to read, each once: `columns`, else `features`, else all; plus targets."""
    if columns is not None:
        left_out = [one for one in (*(features or ()), *targets) if one not in columns]
        if features is not None and left_out:
            raise ConfigError(
                f"columns= leaves out {left_out[0]!r}, which features= or target= names. Leave"
                " columns= away, or add it."
            )
    named = schema.names if features is None else features
    return list(dict.fromkeys([*(named if columns is None else columns), *targets]))


def _normalized(
    columns: Sequence[Column], normalize: bool | Sequence[str], targets: Sequence[str]
) -> tuple[str, ...]:
    if isinstance(normalize, bool):
        return tuple(
            one.name
            for one in columns
            if normalize
            and one.kind in ("number", "tensor")
            and one.dtype is not torch.bool
            and one.name not in targets
        )
    kinds = {one.name: one for one in columns}
    for name in normalize:
        check_column(name, list(kinds), "normalize")
        if kinds[name].kind not in ("number", "tensor"):
            raise ConfigError(
                f"normalize= names {name!r}, which is {kinds[name].arrow} and has no mean."
            )
    return tuple(normalize)


def _check_dataclass(batch: type, columns: Sequence[Column]) -> None:
    there = {column.name for column in columns} | {
        f"{column.name}_length" for column in columns if column.kind == "list"
    }
    for field in dataclasses.fields(batch):
        is_needed = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if field.init and is_needed and field.name not in there:
            raise ConfigError(
                f"{batch.__name__} has a field {field.name!r}, but there is no such column; there"
                f" are: {', '.join(sorted(there))}."
            )
