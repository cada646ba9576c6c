"""Trials of earlier sweeps, which a search is to know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import yaml

from raylit.loggers import MLFlowLogger
from raylit.runtime.aliases import PlainDict
from raylit.tune.aliases import Values
from raylit.tune.record import FILE, read_lines
from raylit.tune.search import SAMPLERS
from raylit.tune.space import SweepError, numbers_of

if TYPE_CHECKING:
    from raylit.trainer.trainer import Trainer
    from raylit.tune.spec import SweepSpec

Earlier = list[tuple[Values, list[float]]]


def earlier_trials(spec: SweepSpec, records: str, trainer: Trainer) -> Earlier:
    """Return the values and metrics of the trials that `warm_start` names.

    Raises:
        SweepError: there is no such sweep, or the search cannot be told of them.
    """
    wanted = spec.warm_start
    if wanted is None:
        return []
    if spec.search_name not in ("optuna", *SAMPLERS):
        raise SweepError(
            f"warm_start: search: {spec.search_name} cannot be told of earlier trials. Use search:"
            " optuna.",
            ("warm_start",),
        )
    for folder in (wanted, os.path.join(records, wanted)):
        if os.path.isfile(os.path.join(folder, FILE)):
            return _of_folder(folder, spec)
    own = next((one for one in trainer.loggers if isinstance(one, MLFlowLogger)), None)
    logger = own if own is not None else MLFlowLogger(spec.name)
    found = logger.trials_below(wanted, trainer.default_root_dir)
    if found is None:
        raise SweepError(
            f"warm_start: {wanted!r} is neither the folder of a sweep in {records} nor a run of"
            " MLflow.",
            ("warm_start",),
        )
    return [
        (config, values)
        for params, metrics in found
        if (config := _nested(params, spec.space)) is not None
        and (values := _values(metrics, spec)) is not None
    ]


def _of_folder(folder: str, spec: SweepSpec) -> Earlier:
    raw: dict[str, Values] = {}
    found: Earlier = []
    for line in read_lines(os.path.join(folder, FILE)):
        if "start" in line:
            raw[line["start"]] = line["values"]
        elif "end" in line and line["end"]["name"] in raw:
            metrics = line["end"]["last"]
            values = _values({**metrics}, spec)
            if values is not None:
                found.append((raw[line["end"]["name"]], values))
    return found


def _values(metrics: Mapping[str, float], spec: SweepSpec) -> list[float] | None:
    if any(name not in metrics for name in spec.metrics):
        return None
    return [float(metrics[name]) for name in spec.metrics]


def _nested(params: Mapping[str, str], space: Mapping[str, object]) -> dict[str, object] | None:
    """Return the values by keys of the space of parameters with full names; None if one lacks."""
    found: dict[str, object] = {}
    for key in space:
        if key in params:
            found[key] = numbers_of(yaml.safe_load(params[key]))
            continue
        inner: PlainDict = {}
        for name, text in params.items():
            if name.startswith(f"{key}."):
                _put(inner, name.removeprefix(f"{key}.").split("."), text)
        if not inner:
            return None
        found[key] = inner
    return found


def _put(tree: PlainDict, path: list[str], text: str) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = numbers_of(yaml.safe_load(text))
