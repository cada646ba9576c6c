"""Has `torch.load(weights_only=False)` give a checkpoint of raylit's as Lightning's would be.

Packages read the files of their models themselves, and look for objects where they have put them.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from raylit.checkpoint import foreign


def install() -> None:
    """Put objects that a checkpoint holds pickled back in their places, where code may run."""
    original = torch.load
    if hasattr(original, "puts_objects_back"):
        return

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if kwargs.get("weights_only") is False:
            where = kwargs.get("map_location", args[1] if len(args) > 1 else None)
            foreign.put_back(found, where)
        return found

    load.puts_objects_back = True  # type: ignore[attr-defined]
    torch.load = load
