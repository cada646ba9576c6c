"""Lightning's names beside those of `raylit.loggers.logger`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from raylit.as_lightning.beside import names_of
from raylit.loggers import logger

__all__ = [*logger.__all__, "merge_dicts"]

__getattr__ = names_of(__name__, logger)


def merge_dicts(
    dicts: Sequence[Mapping[str, float]],
    agg_key_funcs: Mapping[str, Callable[[Sequence[float]], float]] | None = None,
    default_func: Callable[[Sequence[float]], float] = np.mean,
) -> dict[str, float]:
    """Merge mappings into one: a function for each key reduces its values to one.

    Args:
        dicts: the mappings.
        agg_key_funcs: functions by key.
        default_func: for keys that have none.
    """
    values: defaultdict[str, list[float]] = defaultdict(list)
    for one in dicts:
        for key, value in one.items():
            values[key].append(value)
    functions = agg_key_funcs or {}
    return {key: functions.get(key, default_func)(found) for key, found in values.items()}
