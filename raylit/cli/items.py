"""Callbacks and loggers of a config that keys name by their classes.

Such a key is `trainer.callbacks.EarlyStopping.patience`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from raylit.cli.diagnosis import nearest
from raylit.errors import ConfigError

LISTS = ("callbacks", "logger")  # arguments of the Trainer
FLAG = re.compile(rf"--(trainer\.(?:{'|'.join(LISTS)})\.[A-Z]\w*\.[\w.]+)")


def split(args: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the flags but for those of callbacks and loggers by name, and of those key and value.

    Example:
        >>> split(["--trainer.max_epochs=3", "--trainer.callbacks.EarlyStopping.patience", "5"])
        (['--trainer.max_epochs=3'], {'trainer.callbacks.EarlyStopping.patience': '5'})
    """
    others: list[str] = []
    named: dict[str, str] = {}
    rest = iter(args)
    for arg in rest:
        flag, equals, value = arg.partition("=")
        found = FLAG.fullmatch(flag)
        if found is None:
            others.append(arg)
            continue
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"{flag} wants a value: {flag} VALUE.")
        named[found[1]] = value
    return others, named


def is_named(key: str) -> bool:
    """Tell whether a key names a value of a callback or logger by its class."""
    return FLAG.fullmatch(f"--{key}") is not None


def put(trainer: dict[str, object], key: str, value: object) -> str:
    """Put a value into the callback or logger that a key names; return which list it is in.

    Args:
        trainer: the arguments of the Trainer in a config, which are changed.
        key: such as `trainer.callbacks.EarlyStopping.patience`.
        value: the value.

    Raises:
        ConfigError: the config has none of that class, or several; or the key leads into a value
            that has no parts.
    """
    _, part, name, *path = key.split(".")
    items = trainer.get(part)
    several = items if isinstance(items, list) else [items]
    found = [item for item in several if isinstance(item, dict) and "class_path" in item]
    names = [item["class_path"].rpartition(".")[2] for item in found]
    if name not in names:
        raise ConfigError(
            f"trainer.{part}.{name}: the config has no such one.{nearest(name, names)} It has:"
            f" {', '.join(names) or 'none'}."
        )
    if names.count(name) > 1:
        raise ConfigError(
            f"trainer.{part}.{name}: the config has {names.count(name)} of them, and which is meant"
            f" cannot be told. Give the whole list: --trainer.{part}='[...]', or a config."
        )
    inner = found[names.index(name)].setdefault("init_args", {})
    for number, step in enumerate(path[:-1]):
        inner = inner.setdefault(step, {})
        if not isinstance(inner, dict):
            above = ".".join(path[: number + 1])
            raise ConfigError(f"{key}: {above} is {inner!r}, which has no {path[number + 1]!r}.")
    inner[path[-1]] = value
    return part
