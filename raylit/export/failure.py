"""The refusal of an exporter: the operator, and the line of the user's code that calls it."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from raylit.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@contextmanager
def explained(module: nn.Module) -> Iterator[None]:
    """Turn an exception of torch.export into a ConfigError that names the line.

    Raises:
        ConfigError: the module cannot be exported.
    """
    try:
        yield
    except Exception as error:
        line = line_in(error)
        text = in_short(error)
        advice = (
            "What a program does may not depend on the values in a batch, and its first dimension"
            " must stay the number of samples: use torch.where for a branch, x.shape[0] for a size."
        )
        raise ConfigError(
            f"{type(module).__name__}.forward cannot be exported{line}: {text} {advice}"
        ) from error


@contextmanager
def explained_operator(module: nn.Module, program: ExportedProgram, format: str) -> Iterator[None]:
    """Turn an exception of the ONNX exporter into a ConfigError that names operator and line.

    Raises:
        ConfigError: an operator has no counterpart.
    """
    try:
        yield
    except Exception as error:
        operators = re.findall(r"OpOverload\(op='([^']+)'", _all_text(error))
        if not operators:
            raise ConfigError(
                f"{type(module).__name__} cannot be exported to {format}: {in_short(error)}"
            ) from error
        name = operators[0]
        line = line_of_operator(program, name)
        raise ConfigError(
            f"{type(module).__name__} cannot be exported to {format}: there is no counterpart of"
            f" the operator {name}{line}. Write it with other operators, or export with"
            " format='pt2'."
        ) from error


def line_of_operator(program: ExportedProgram, name: str) -> str:
    """Return likewise the line that calls an operator.

    The exporter may have taken it apart: `aten.special_bessel_j1` calls `prims.bessel_j1`.
    """
    wanted = name.replace("::", ".").split(".")[1]
    calls = [node for node in program.graph.nodes if node.stack_trace and node.op != "output"]
    for is_it in (str.__eq__, str.endswith):
        for node in calls:
            parts = str(node.target).split(".")
            if len(parts) > 1 and is_it(parts[1], wanted):
                return line_of_trace(node.stack_trace)
    return ""


def line_in(error: BaseException) -> str:
    """Return ` at FILE, line N: CODE` for the innermost line of user code that led to an error."""
    frames = [frame for one in _chain(error) for frame in _frames(one.__traceback__)]
    users = [frame for frame in frames if is_users(frame.filename)]
    return _where(users[-1]) if users else ""


def line_of_trace(trace: str) -> str:
    """Return likewise the line in the text of a stack."""
    found = re.findall(r'File "([^"]+)", line (\d+), in \S+\n\s+(.*)', trace)
    users = [entry for entry in found if is_users(entry[0])]
    if not users:
        return ""
    file, number, code = users[-1]
    return f" at {_shown(file)}, line {number}: `{code.strip()}`"


def is_users(file: str) -> bool:
    """Tell whether a file is the user's: neither installed nor a part of raylit."""
    installed = re.search(r"[/\\](site|dist)-packages[/\\]", file) or file.startswith("<")
    return not installed and not file.startswith((OWN, os.path.dirname(os.__file__)))


def in_short(error: BaseException) -> str:
    """Return the first line of an exception's text, as a sentence."""
    text = next((str(one) for one in _chain(error) if str(one).strip()), repr(error))
    first = text.strip().splitlines()[0].strip()
    return first if first.endswith((".", "!", "?")) else f"{first}."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Give the errors that led to one, the first of all first."""
    if error is not None:
        yield from _chain(error.__cause__ or error.__context__)
        yield error


def _all_text(error: BaseException) -> str:
    return "\n".join(str(one) for one in _chain(error))


def _frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(trace))


def _where(frame: traceback.FrameSummary) -> str:
    return f" at {_shown(frame.filename)}, line {frame.lineno}: `{(frame.line or '').strip()}`"


def _shown(file: str) -> str:
    near = os.path.relpath(file)
    return file if near.startswith("..") else near
