"""ModelSummary of a model, outside a fit."""

from __future__ import annotations

from raylit.runtime.summary import Summary, summarize

__all__ = ["ModelSummary", "Summary", "summarize"]

ModelSummary = summarize  # by Lightning's name: `print(ModelSummary(model, max_depth=-1))`
