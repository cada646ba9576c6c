"""What environment variables of raylit's own say, checked in one place."""

from __future__ import annotations

import math
import os

from raylit.errors import ConfigError


def seconds(variable: str, default: float) -> float:
    """Return the seconds that an environment variable holds, or the default if it is not set.

    Raises:
        ConfigError: it holds no positive number.
    """
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigError(
            f"The environment variable {variable}={text} holds no number of seconds. Write a"
            f" positive number, such as {variable}={default:g}, or unset it."
        )
    return value
