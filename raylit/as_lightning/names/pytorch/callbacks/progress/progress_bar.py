"""Lightning's path to `raylit.callbacks.Bar`, which it calls ProgressBar."""

from __future__ import annotations

from typing import Any

from raylit.callbacks import Bar as ProgressBar

__all__ = ["ProgressBar", "get_standard_metrics"]


def get_standard_metrics(trainer: Any) -> dict[str, Any]:
    """Return the version of the logger as `v_num`, if there is one."""
    version = trainer.loggers[0].version if trainer.loggers else None
    if version is None:
        return {}
    return {"v_num": version[-4:] if isinstance(version, str) else version}
