"""Config files and flags as data that knows where each of its keys stands."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import yaml

from raylit.cli.foreign import as_own
from raylit.cli.told import classes_of, with_classes
from raylit.errors import ConfigError, did_you_mean
from raylit.runtime import bounded_yaml
from raylit.runtime.aliases import PlainData, PlainDict

_MISSING = object()
MAX_PARTS = 32  # of the name of a flag


@dataclass(frozen=True)
class ConfigSource:
    """A config file, or one flag.

    Attributes:
        name: the file, or the flag.
        values: what it says, nested.
        root: the file as nodes of YAML, which know their lines.
        flags: what wins over the file, and is in the values already.
    """

    name: str
    values: PlainDict
    root: yaml.Node | None = None
    flags: tuple[ConfigSource, ...] = ()

    def where(self, path: Sequence[str | int]) -> str:
        """Return in words where the key at `path` stands."""
        flag = _source_of(self.flags, [str(part) for part in path]) if path else None
        if flag is not None:
            return flag.name
        line = _line(self.root, path)
        return self.name if line is None else f"{self.name}, line {line}"


def read_arguments(args: Sequence[str], flags: Sequence[str] = ()) -> list[ConfigSource]:
    """Return a ConfigSource for each config file and flag in a command's arguments, in order.

    Args:
        args: what stands behind the command, without the flags that are no keys of a config.
        flags: such flags that want no value, one of which may have been meant.

    Raises:
        ConfigError: a file is missing or no YAML; something is no flag, or a flag has no value.
    """
    sources: list[ConfigSource] = []
    classes = classes_of(args)
    rest = iter(args)
    for arg in rest:
        flag, equals, value = arg.partition("=")
        if not flag.startswith("--") and flag != "-c":
            raise ConfigError(
                f"{arg!r} is not expected here: keys of the config are given as flags, such as"
                " --trainer.max_epochs 3."
            )
        if not equals:
            value = next(rest, "--")
            if value.startswith("--"):
                raise ConfigError(f"{flag} wants a value: {flag} VALUE.{did_you_mean(flag, flags)}")
        if flag in ("-c", "--config"):
            source = read_file(value, "--config")
            sources.append(replace(source, values=with_classes(source.values, classes)))
        else:
            sources.append(ConfigSource(flag, _nest(flag, _plain(flag, value))))
    return sources


def read_file(path: str, asked_by: str) -> ConfigSource:
    """Return the values in a YAML file as a ConfigSource.

    Args:
        path: the file.
        asked_by: flag or key that named it.

    Raises:
        ConfigError: it is missing, no YAML, or no mapping.
    """
    if not path.strip():
        raise ConfigError(f"{asked_by} wants a file: {asked_by} configs/digits.yaml.")
    try:
        text = bounded_yaml.read_bytes(path)
    except ValueError as error:
        raise ConfigError(f"{asked_by} {path}: {error}.") from None
    except OSError as error:
        folder = os.path.dirname(path) or "."
        near = (
            did_you_mean(os.path.basename(path), os.listdir(folder))
            if os.path.isdir(folder)
            else f" There is no folder {folder}."
        )
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ConfigError(f"{asked_by} {path}: {reason}.{near}") from None
    try:
        root, values = bounded_yaml.read(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{problem_of(error)}") from None
    if values is None:
        return ConfigSource(path, {})
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: a config is a mapping of keys to values, such as `trainer:`; this is a"
            f" {type(values).__name__}."
        )
    return ConfigSource(path, as_own(values), root)


def problem_of(error: yaml.YAMLError) -> str:
    """Return where a text is no valid YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{place}: no valid YAML: {getattr(error, 'problem', None) or error}."


def with_flags(source: ConfigSource, args: Sequence[str], below: str) -> ConfigSource:
    """Return a file with flags such as `--sweep.trials 2` over it.

    Args:
        source: the file.
        args: the flags.
        below: the first part of their names, which the file does not have.

    Raises:
        ConfigError: a flag has no value, or goes into what is no mapping.
    """
    values = copy.deepcopy(source.values)
    flags = []
    for flag in read_arguments(args):
        own = flag.values[below]
        _merge(values, own, flag.name)
        flags.append(ConfigSource(flag.name, own))
    return ConfigSource(source.name, values, source.root, tuple(flags))


def _merge(into: PlainDict, values: Mapping[str, object], flag: str) -> None:
    for name, value in values.items():
        inner = into.get(name)
        in_one = next((key for key in into if _lies_at(key.split("."), {name: value})), None)
        if in_one is not None:  # the file writes `a.b: 1` where the flag has {a: {b: 1}}
            for part in in_one.split(".")[1:]:
                value = value[part]  # type: ignore[index]
            into[in_one] = value
        elif isinstance(value, Mapping) and isinstance(inner, dict):
            _merge(inner, value, flag)
        elif isinstance(value, Mapping) and inner is not None:
            raise ConfigError(f"{flag}: {name} is {inner!r} in the file, which has no keys.")
        else:
            into[name] = value


def _lies_at(path: list[str], values: object) -> bool:
    """Tell whether there is a value at a path of several parts."""
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return len(path) > 1


def where_given(sources: Sequence[ConfigSource], path: Sequence[str]) -> str | None:
    """Return in words where the key at `path` was given last; None if it was not."""
    source = _source_of(sources, path)
    return None if source is None else source.where(path)


def _source_of(sources: Sequence[ConfigSource], path: Sequence[str]) -> ConfigSource | None:
    """Return the last of some sources that gives the key at `path`."""
    for source in reversed(sources):
        values: object = source.values
        for part in path:
            values = (
                values.get(part, values.get(f"{part}+", _MISSING))
                if isinstance(values, dict)
                else _MISSING
            )
        if values is not _MISSING:
            return source
    return None


def dotted(path: Iterable[str | int]) -> str:
    """Write a path as users do: `trainer.callbacks[0].init_args.monitor`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(
        "."
    )


def as_flag(value: object) -> str:
    """Return a value as a flag has it, which is YAML: JSON knows no infinities and no dates.

    Example:
        >>> as_flag({"patience": 3, "divergence_threshold": float("inf"), "mode": "off"})
        '{"patience": 3, "divergence_threshold": .inf, "mode": "off"}'
    """
    if isinstance(value, Mapping):
        entries = (f"{as_flag(key)}: {as_flag(one)}" for key, one in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(as_flag(one) for one in value)}]"
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(float(value))]
    return json.dumps(value, default=str)


def _plain(flag: str, text: str) -> PlainData:
    """Return the value of a flag, which is YAML.

    Raises:
        ConfigError: it is beyond the bounds.
    """
    try:
        return bounded_yaml.read(text)[1]
    except bounded_yaml.RefusedError as error:
        raise ConfigError(f"{flag}: its value cannot be read: {error.problem}.") from None
    except yaml.YAMLError:
        return text


def _nest(flag: str, value: PlainData) -> PlainDict:
    """Return the value of a flag as a config has it: `--a.b 1` is `{"a": {"b": 1}}`.

    Raises:
        ConfigError: the flag has no name, or too many parts.
    """
    parts = flag.removeprefix("--").split(".")
    if not all(parts):
        raise ConfigError(
            f"{flag[:80]!r} is no flag: a part of its name is empty. Write --trainer.max_epochs 3."
        )
    if any(part.startswith("__") for part in parts):  # jsonargparse keeps notes of its own there
        raise ConfigError(f"{flag[:80]!r} is no flag: no key of a config begins with __.")
    if len(parts) > MAX_PARTS:
        raise ConfigError(
            f"{flag[:60]}...: it has {len(parts)} parts, but no key of a config is deeper than"
            f" {MAX_PARTS}."
        )
    nested = value
    for part in reversed(parts):
        nested = {part: nested}
    return dict(nested)


def _line(node: yaml.Node | None, path: Sequence[str | int]) -> int | None:
    """Return the line of the key at `path`, or of as much of the path as is there."""
    line = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == part), None)
            if found is None:
                break
            line = found[0].start_mark.line + 1
            node = found[1]
        elif (
            isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value)
        ):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line
