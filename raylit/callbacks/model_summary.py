"""Lightning's path to `raylit.callbacks.display.model_summary`."""

from raylit.callbacks.display.model_summary import ModelSummary, RichModelSummary

__all__ = ["ModelSummary", "RichModelSummary"]
