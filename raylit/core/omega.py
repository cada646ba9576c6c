"""OmegaConf's configs among the hyperparameters: which were some, and made again of plain data.

Checkpoints hold them as plain data. Nothing here imports omegaconf unless there is one.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raylit.runtime.aliases import StateDict

Place = list[object]  # the keys that lead to a config; empty: the whole


def is_config(value: object) -> bool:
    """Tell whether a value is a DictConfig or ListConfig."""
    omegaconf = sys.modules.get("omegaconf")
    return omegaconf is not None and isinstance(value, omegaconf.Container)


def places(values: object) -> list[Place]:
    """Return where configs stand in nested mappings and lists: of each the outermost place."""
    if is_config(values):
        return [[]]
    inner: Iterable[tuple[object, object]] = ()
    if isinstance(values, Mapping):
        inner = values.items()
    elif isinstance(values, list):
        inner = enumerate(values)
    return [[key, *place] for key, value in inner for place in places(value)]


def restored(values: StateDict, found: Sequence[Place]) -> StateDict:
    """Return plain data with configs where they were; as it is, where omegaconf is not installed.

    Args:
        values: nested mappings and lists. They are data of a checkpoint: what would be an
            interpolation, which can read the environment, stays text.
        found: what `places` returned of them.
    """
    if not found:
        return values
    try:
        OmegaConf = importlib.import_module("omegaconf").OmegaConf
    except ImportError:
        return values
    whole = {"": values}
    for place in found:
        holder: Any = whole
        try:
            *outer, last = ["", *place]
            for key in outer:
                holder = holder[key]
            holder[last] = OmegaConf.create(_literal(holder[last]))
        except (KeyError, IndexError, TypeError):
            continue  # it is not among them any more, or the file is damaged
    return whole[""]


def _literal(value: object) -> object:
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, Mapping):
        return {key: _literal(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_literal(one) for one in value]
    return value
