"""Data that `torch.load(weights_only=True)` takes back: tensors, numbers, texts and containers."""

from __future__ import annotations

import codecs
import os
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def to_plain(value: object) -> Any:
    """Return `value` as data that `torch.load(weights_only=True)` takes back.

    Tensors, numbers, strings, None and containers of them pass; paths become strings, numpy
    scalars numbers, other mappings and namespaces dicts, and so do the configs of OmegaConf.

    Raises:
        TypeError: it is or holds something else, which is named.
    """
    if value is None or isinstance(
        value,
        (
            bool,
            int,
            float,
            complex,
            str,
            bytes,
            torch.Tensor,
            torch.dtype,
            torch.device,
            torch.Size,
        ),
    ):
        if isinstance(value, bytes) and not value:
            return _EMPTY
        # Such as numpy's float64 or an IntEnum: torch takes back Python's own classes alone
        subclassed: type | None = next(
            (t for t in (int, float, str) if type(value) is not t and isinstance(value, t)), None
        )
        return subclassed(value) if subclassed and not isinstance(value, bool) else value
    if isinstance(value, OrderedDict) and type(value) is OrderedDict:
        return OrderedDict((to_plain(k), to_plain(v)) for k, v in value.items())
    if isinstance(value, Namespace):
        return {name: to_plain(inner) for name, inner in vars(value).items()}
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(value[key]) for key in value}
    if isinstance(value, Sequence) and type(value).__module__.startswith("omegaconf."):
        return [to_plain(item) for item in value]
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [to_plain(item) for item in value]
        if isinstance(value, list):
            return items
        return tuple(items) if isinstance(value, tuple) else set(items)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if (
        type(value).__module__ == "numpy"
        and hasattr(value, "item")
        and getattr(value, "ndim", 1) == 0
    ):
        return value.item()
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__} is not plain data")


class _EmptyBytes(bytes):
    """b"", pickled as other bytes are: torch refuses the pickle of an empty one and so the file."""

    def __reduce__(self) -> tuple[object, ...]:
        return codecs.encode, ("", "latin1")


_EMPTY = _EmptyBytes()


def plain_items(values: dict[str, object]) -> tuple[dict[str, object], list[str]]:
    """Split `values` into its entries as plain data and the names of those that are none."""
    kept: dict[str, object] = {}
    left_out: list[str] = []
    for key, value in values.items():
        try:
            kept[key] = to_plain(value)
        except TypeError:
            left_out.append(key)
    return kept, left_out
