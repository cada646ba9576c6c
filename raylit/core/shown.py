"""How results look as the last line of a notebook's cell: figures, tables, a line of text."""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from raylit.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_VALUES = 6  # of metrics in a line


def new_figure(width: float, height: float) -> Figure:
    """Return a matplotlib Figure that notebooks show without pyplot.

    Args:
        width: in inches.
        height: in inches.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    _let_notebooks_show(type(figure))
    return figure


def _let_notebooks_show(figure_type: type[Figure]) -> None:
    """Have the IPython that runs, if one does, draw figures.

    It does so by itself only once pyplot has been set up, which knows none of ours.
    """
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None:
        return
    formatters = shell.display_formatter.formatters["image/png"]
    if figure_type not in formatters.type_printers:
        formatters.for_type(figure_type, as_png)


def as_png(figure: Figure, dpi: float = 100) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def as_html(rows: Iterable[tuple[str, str]], figure: Figure | None = None) -> str:
    """Return names and values as an HTML table, with a picture below.

    A value that is an address becomes a link.
    """
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{_linked(value)}</td></tr>"
        for name, value in rows
    )
    picture = ""
    if figure is not None:
        data = base64.b64encode(as_png(figure, dpi=72)).decode()
        picture = f"<img alt='curves' src='data:image/png;base64,{data}'>"
    return f"<table>{cells}</table>{picture}"


def in_short(values: Mapping[str, float]) -> str:
    """Return the first few metrics in words: `val_loss=0.0312, val_acc=0.991`."""
    shown = [f"{name}={value:.4g}" for name, value in [*values.items()][:MOST_VALUES]]
    if len(values) > MOST_VALUES:
        shown.append(f"and {len(values) - MOST_VALUES} more")
    return ", ".join(shown)


def curves(history: Sequence[Mapping[str, float]], keys: Sequence[str] = ()) -> Figure:
    """Return a figure with values over the steps at which they were logged.

    Args:
        history: rows with `step` and values.
        keys: those to draw; all if none is named. Of one that was logged by step and by epoch,
            its name alone means the epochs.

    Raises:
        ConfigError: one was not logged.
    """
    logged = sorted({name for row in history for name in row} - {"epoch", "step"})
    names = [f"{key}_epoch" if f"{key}_epoch" in logged else key for key in keys] or logged
    for key, name in zip(keys, names, strict=False):
        if name not in logged:
            raise ConfigError(
                f"{key!r} was not logged in this run.{did_you_mean(key, logged)} There are:"
                f" {', '.join(logged) or 'none'}."
            )
    figure = new_figure(8, 4)
    axes = figure.subplots()
    for name in names:
        points = [(row["step"], row[name]) for row in history if name in row]
        steps = [step for step, _ in points]
        values = [value for _, value in points]
        axes.plot(steps, values, marker="o", markersize=3, label=name)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    if names:
        axes.legend()
    return figure


def _linked(value: str) -> str:
    text = html.escape(value)
    return f"<a href='{text}'>{text}</a>" if value.startswith(("http://", "https://")) else text
