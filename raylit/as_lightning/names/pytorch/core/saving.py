"""Lightning's place for hyperparameters in files of their own."""

from __future__ import annotations

import ast
import csv
import os
from argparse import Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING

import yaml

from raylit.checkpoint import to_plain

if TYPE_CHECKING:
    from raylit.runtime.aliases import Arguments

__all__ = [
    "load_hparams_from_tags_csv",
    "load_hparams_from_yaml",
    "save_hparams_to_tags_csv",
    "save_hparams_to_yaml",
    "update_hparams",
]

CHECKPOINT_PAST_HPARAMS_KEYS = ("hparams", "module_arguments")
Path = str | os.PathLike[str]


def update_hparams(hparams: Arguments, updates: Mapping[str, object]) -> None:
    """Put new values into hyperparameters, key by key in nested ones."""
    for name, value in updates.items():
        if isinstance(value, Mapping) and isinstance(hparams.get(name), dict):
            update_hparams(hparams[name], value)
        else:
            hparams[name] = value


def load_hparams_from_yaml(config_yaml: Path, use_omegaconf: bool = True) -> Arguments:
    """Return the hyperparameters in a YAML file; none if there is no such file."""
    if not os.path.isfile(config_yaml):
        return {}
    with open(config_yaml) as file:
        return yaml.safe_load(file) or {}


def save_hparams_to_yaml(
    config_yaml: Path, hparams: Mapping[str, object] | Namespace, use_omegaconf: bool = True
) -> None:
    """Write hyperparameters to a YAML file; values that are not plain data are written as text.

    Raises:
        RuntimeError: there is no such folder.
        TypeError: they are no mapping.
    """
    if not os.path.isdir(os.path.dirname(os.path.abspath(config_yaml))):
        raise RuntimeError(f"Missing folder: {os.path.split(config_yaml)[0]}.")
    values = vars(hparams) if isinstance(hparams, Namespace) else hparams
    if not isinstance(values, Mapping):
        raise TypeError("hparams must be dictionary, a mapping with names.")
    with open(config_yaml, "w", newline="") as file:
        yaml.safe_dump({name: _written(value) for name, value in values.items()}, file)


def _written(value: object) -> object:
    try:
        plain = to_plain(value)
        yaml.safe_dump(plain)
    except (TypeError, yaml.YAMLError):
        return str(value)
    return plain


def load_hparams_from_tags_csv(tags_csv: Path) -> Arguments:
    """Return the hyperparameters in a CSV file of keys and values; none if there is no file."""
    if not os.path.isfile(tags_csv):
        return {}
    with open(tags_csv, newline="") as file:
        return {row["key"]: convert(row["value"]) for row in csv.DictReader(file)}


def save_hparams_to_tags_csv(tags_csv: Path, hparams: Mapping[str, object] | Namespace) -> None:
    """Write hyperparameters to a CSV file of keys and values.

    Raises:
        RuntimeError: there is no such folder.
    """
    if not os.path.isdir(os.path.dirname(os.path.abspath(tags_csv))):
        raise RuntimeError(f"Missing folder: {os.path.split(tags_csv)[0]}.")
    values = vars(hparams) if isinstance(hparams, Namespace) else hparams
    with open(tags_csv, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["key", "value"])
        writer.writeheader()
        writer.writerows({"key": name, "value": value} for name, value in values.items())


def convert(val: str) -> object:
    """Return the Python literal that a text is, else the text."""
    try:
        return ast.literal_eval(val)
    except (ValueError, SyntaxError):
        return val
