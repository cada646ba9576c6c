"""YAML that people write, read with bounds.

A config of a few hundred bytes can be a thousand million values (aliases of aliases), a list that
contains itself, or deeper than Python recurses; and of two equal keys YAML silently takes the
second. All of these are refused with a sentence and a line before anything walks through them.
"""

from __future__ import annotations

import os
import stat
from typing import Any

import yaml

from raylit.runtime.bounds import MAX_DEPTH, TooLargeError, check_size
from raylit.runtime.storage import kind_of

MAX_BYTES = 2**20
MAX_VALUES = 20_000

# libyaml's is ten times as fast.
Loader: type[yaml.CSafeLoader] | type[yaml.SafeLoader] = getattr(
    yaml, "CSafeLoader", yaml.SafeLoader
)

# Reads tuples too, as loggers write them into hparams.yaml
LoaderOfTuples: type[yaml.SafeLoader] = type("LoaderOfTuples", (Loader,), {})
LoaderOfTuples.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(node)),  # type: ignore[arg-type]
)


class RefusedError(yaml.MarkedYAMLError):
    """A text is YAML, but beyond the bounds, or ambiguous."""


def read_bytes(path: str | os.PathLike[str]) -> str:
    """Return the text of a file that is to be a config.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file, too large, or no text in UTF-8; the text says what it is.
    """
    mode = os.stat(path).st_mode
    is_pipe = stat.S_ISFIFO(mode) and os.fspath(path).startswith(("/dev/fd/", "/proc/self/fd/"))
    if not (stat.S_ISREG(mode) or is_pipe):
        raise ValueError(f"it is {kind_of(mode)}, no file")
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES // 2**20} MiB, which no config is")
    for mark, name in ((b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16")):
        if content.startswith(mark):
            raise ValueError(f"it is text in {name}. Save it in UTF-8: iconv -f {name} -t UTF-8")
    if b"\0" in content:
        raise ValueError("it holds zero bytes: it is a binary file, or text in UTF-16 or UTF-32")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        raise ValueError(
            f"line {line}, column {column}: the byte 0x{content[error.start]:02x} is no UTF-8. If"
            " it is Latin-1, convert it: iconv -f LATIN1 -t UTF-8"
        ) from None


def read(text: str, loader: Any = Loader) -> tuple[yaml.Node | None, Any]:
    """Return a text's nodes, which know their lines, and its values.

    Args:
        text: a config.
        loader: what makes values of the nodes; it has to be a safe one.

    Raises:
        YAMLError: it is no YAML, beyond the bounds, or has a key twice.
    """
    check(text)
    root = yaml.compose(text, Loader=Loader)
    if root is not None:
        _refuse_duplicates(root)
    try:
        values = yaml.load(text, Loader=loader)
    except (ValueError, OverflowError) as error:  # such as 2020-13-45, which looks like a date
        raise yaml.MarkedYAMLError(problem=str(error)) from error
    try:
        check_size(values, MAX_VALUES)
    except TooLargeError as error:
        raise RefusedError(problem=str(error)) from error
    return root, values


def check(text: str) -> None:
    """Check that a text can be read without end and without recursion that is too deep.

    Raises:
        YAMLError: it is no YAML, or beyond the bounds.
    """
    if len(text) > MAX_BYTES:
        raise RefusedError(problem=f"it is larger than {MAX_BYTES // 2**20} MiB")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise yaml.MarkedYAMLError(problem=f"it is no UTF-8: {error.reason}") from error
    depth = 0
    open_anchors: list[str | None] = []
    for number, event in enumerate(yaml.parse(text, Loader=Loader), 1):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            open_anchors.append(event.anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            open_anchors.pop()
        elif isinstance(event, yaml.AliasEvent) and event.anchor in open_anchors:
            raise _refused(f"&{event.anchor} contains itself", event)
        if depth > MAX_DEPTH:
            raise _refused(f"it is nested deeper than {MAX_DEPTH} levels", event)
        if number > MAX_VALUES:
            raise _refused(f"it has more than {MAX_VALUES:,} values", event)


def _refused(problem: str, event: yaml.Event) -> RefusedError:
    mark: Any = event.start_mark  # one of two classes, with and without libyaml
    return RefusedError(problem=problem, problem_mark=mark)


def _refuse_duplicates(root: yaml.Node) -> None:
    seen: set[int] = set()
    left = [root]
    for node in left:  # which grows
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            left.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            lines: dict[tuple[str, str], int] = {}
            for key, value in node.value:
                left.append(value)
                if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                    continue
                name = (key.tag, key.value)
                if name in lines:
                    raise RefusedError(
                        problem=f"the key {key.value!r} stands here and in line {lines[name]}",
                        problem_mark=key.start_mark,
                    )
                lines[name] = key.start_mark.line + 1
