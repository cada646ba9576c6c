"""raylit's own environment variables, read and checked in one place."""

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


ON = "RAYLIT_ON"  # tells a job what `--on` was, for the commands that it proposes
CHOICES = {  # variables that name one of a few, and those
    "RAYLIT_PROGRESS": ("rich", "plain", "none"),
    "PL_SEED_WORKERS": ("0", "1"),
}


def check() -> None:
    """Check that raylit's environment variables have valid values, before a run reads them.

    Raises:
        ConfigError: one does not.
    """
    for variable, default in (("RAYLIT_TIMEOUT_S", 1800.0), ("RAYLIT_RESIZE_EVERY_S", 10.0)):
        seconds(variable, default)
    for variable, choices in CHOICES.items():
        text = os.environ.get(variable)
        if text and text not in choices:
            raise ConfigError(
                f"The environment variable {variable}={text} is none of {', '.join(choices)}. Give"
                " one of them, or unset it."
            )
