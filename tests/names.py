"""Names of a parametrized test's cases that are the same in every process."""

from __future__ import annotations

import re


def without_addresses(value: object) -> str:
    """Return a value as text, without where in memory it lies."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
