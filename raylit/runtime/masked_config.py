"""Configs without their secrets, and how a config gets them back.

A config that is kept (with a run, a sweep, as the best of a sweep) has `***` in the place of every
secret, and says in a comment which environment variables hold them for whoever runs it again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Sequence

import yaml

from raylit.runtime.secrets import MASK, is_secret_name, is_secret_number, without_secrets

Path = tuple[str | int, ...]

_PROPERTIES = re.compile(r"(?:[&!]\S*[ \t]+)*")  # an anchor and a tag before a value
_IN_TEXT = re.compile(r"(?:://|:)\*{3}@|=\*{3}(?:[&;\s]|$)")


def mask_config(text: str) -> str:
    r"""Return a config with `***` for its secrets, and a comment that says how they are given.

    Args:
        text: YAML; of a text that is none, the lines are masked as those of any text.

    Example:
        >>> print(mask_config("model:\n  api_key: |\n    s3cr3t\n  lr: 0.1\n"))
        # *** stands for what looks like a secret. Give it by the environment: PL_MODEL_API_KEY
        model:
          api_key: "***"
          lr: 0.1
        <BLANKLINE>
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)  # the one whose marks count characters
    except (yaml.YAMLError, RecursionError, ValueError):
        return without_secrets(text)
    if root is None:
        return without_secrets(text)
    names: list[str] = []
    parts: list[str] = []
    end = 0
    for node, path, masked in sorted(_secrets(root), key=lambda one: one[0].start_mark.index):
        names.append(variable_of(path))
        start = node.start_mark.index
        if start < end:
            continue  # an alias of a value that was masked already
        old = text[start : node.end_mark.index]
        before = _PROPERTIES.match(old)
        parts += [text[end:start], before[0] if before else "", json.dumps(masked)]
        parts.append(old[len(old.rstrip()) :])  # the line breaks of a block
        end = node.end_mark.index
    if not names:
        return _in_comments(text)
    given = ", ".join(dict.fromkeys(names))
    head = f"# {MASK} stands for what looks like a secret. Give it by the environment: {given}\n"
    return head + _in_comments("".join([*parts, text[end:]]))


def _in_comments(text: str) -> str:
    """Mask what is left of secrets in a config whose values are masked.

    Line by line: what is indented below the name of a secret would be taken for one text.
    """
    return "".join(map(without_secrets, text.splitlines(keepends=True)))


def secret_paths(root: yaml.Node) -> Iterator[Path]:
    """Yield where secrets stand in clear in a config, which is given as nodes of YAML."""
    for _, path, _ in _secrets(root):
        yield path


def _secrets(
    node: yaml.Node, path: Path = (), is_secret: bool = False
) -> Iterator[tuple[yaml.ScalarNode, Path, str]]:
    """Yield the values to be masked: each with its path and its replacement."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value)
            yield from _secrets(value, (*path, name), is_secret or is_secret_name(name))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _secrets(value, (*path, index), is_secret)
    elif isinstance(node, yaml.ScalarNode) and not is_masked(node.value):
        name = next((part for part in reversed(path) if isinstance(part, str)), "")
        is_text = node.tag.endswith(":str")
        if is_secret and (is_text or is_secret_number(name, node.value)) and node.value:
            yield node, path, MASK
        elif is_text and (masked := without_secrets(node.value)) != node.value:
            yield node, path, masked


def is_masked(value: object) -> bool:
    """Tell whether a value is a secret of which only `***` is left."""
    return isinstance(value, str) and (value == MASK or _IN_TEXT.search(value) is not None)


def variable_of(path: Sequence[str | int]) -> str:
    """Return the environment variable that holds a masked value of a config.

    Example:
        >>> variable_of(("model", "init_args", "api_key"))
        'PL_MODEL_API_KEY'
    """
    parts = [re.sub(r"\W", "_", str(part)) for part in path if part != "init_args"]
    return "_".join(["PL", *parts]).upper()


def unmasked(value: object, path: Path = (), missing: dict[Path, str] | None = None) -> object:
    """Return a value with its masked parts replaced by the values of the environment.

    Args:
        value: lists, mappings and others; lists and mappings are changed in place.
        path: where it stands in the config.
        missing: gets the paths of masked values of which the environment has none, with the
            variables.
    """
    missing = {} if missing is None else missing
    if isinstance(value, list):
        value[:] = [unmasked(one, (*path, index), missing) for index, one in enumerate(value)]
    elif isinstance(value, dict):
        for key, one in value.items():
            value[key] = unmasked(one, (*path, str(key)), missing)
    elif isinstance(value, argparse.Namespace):
        for key, one in vars(value).items():
            setattr(value, key, unmasked(one, (*path, key), missing))
    elif is_masked(value):
        variable = variable_of(path)
        if variable not in os.environ:
            missing[path] = variable
            return value
        return os.environ[variable]
    return value
