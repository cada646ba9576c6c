"""Lightning's path to `raylit.callbacks.Bar`, which it calls ProgressBar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.callbacks import Bar as ProgressBar

if TYPE_CHECKING:
    from raylit.core.trainer import RunningTrainer

__all__ = ["ProgressBar", "get_standard_metrics"]


def get_standard_metrics(trainer: RunningTrainer) -> dict[str, object]:
    """Return the version of the logger as `v_num`, if there is one."""
    version = trainer.loggers[0].version if trainer.loggers else None
    if version is None:
        return {}
    return {"v_num": version[-4:] if isinstance(version, str) else version}
