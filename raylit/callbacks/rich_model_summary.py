"""Lightning's path to `raylit.callbacks.display.model_summary`."""

from raylit.callbacks.display.model_summary import RichModelSummary

__all__ = ["RichModelSummary"]
