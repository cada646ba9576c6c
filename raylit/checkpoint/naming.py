"""How the files of ModelCheckpoint are called: pure functions of a template and of metrics."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_FIELD = re.compile(r"\{(?P<name>[^:}]*)(?::(?P<spec>[^}]*))?\}")


def fields(metrics: Mapping[str, object], epoch: int, step: int) -> dict[str, Tensor]:
    """Return the values for the fields of a template.

    They are the metrics, on the CPU, and the counts `epoch` and `step` unless logged.
    """
    values = {
        name: torch.as_tensor(value).detach().cpu().clone() for name, value in metrics.items()
    }
    for name, count in (("epoch", epoch), ("step", step)):
        # self.log made a float of it
        values[name] = values[name].int() if name in values else torch.tensor(count)
    return values


def fill(
    template: str, metrics: Mapping[str, object], *, shows_names: bool = True, equals: str = "="
) -> str:
    """Return `template` with metrics in place of fields such as `{epoch}` or `{val/loss:.2f}`.

    Args:
        template: fields hold any name, with dots and slashes too, and after a colon a format as in
            f-strings.
        metrics: numbers or tensors with one element; one that is missing counts as 0.
        shows_names: whether a field becomes `name=value` or only the value.
        equals: what stands between name and value.

    Example:
        >>> fill("{epoch:02d}-{val/loss:.2f}", {"epoch": 3, "val/loss": 0.123})
        'epoch=03-val/loss=0.12'
    """

    def value(field: re.Match[str]) -> str:
        name = field["name"]
        text = format(metrics.get(name, 0), field["spec"] or "")
        return f"{name}{equals}{text}" if shows_names else text

    return _FIELD.sub(value, template)


def versions(name: str, *, join: str = "-", start: int = 1) -> Iterator[str]:
    """Yield `name`, then `name-v1`, `name-v2`, ... without end.

    They are the names to try, in turn, for a file whose name is taken.
    """
    return itertools.chain([name], (f"{name}{join}v{number}" for number in itertools.count(start)))
