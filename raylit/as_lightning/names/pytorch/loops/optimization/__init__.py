"""Lightning's place for the optimization within its loops."""

from raylit.as_lightning.names.pytorch.loops import _AutomaticOptimization, _ManualOptimization

__all__ = ["_AutomaticOptimization", "_ManualOptimization"]
