"""ModelSummary: shows the parts of the model before training starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raylit.core.callback import Callback
from raylit.core.logger import as_loggers
from raylit.errors import ConfigError
from raylit.runtime.messages import info
from raylit.runtime.summary import Summary, summarize

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer


class ModelSummary(Callback):
    """Prints a table of the submodules when a fit starts, on rank 0.

    `raylit.summary.summarize` gives the same as an object.

    Args:
        max_depth: how deep to look for submodules; -1: to the bottom, 0: no table.
        summarize_kwargs: handed to `show`.

    Raises:
        ConfigError: `max_depth` is below -1.

    Example:
        >>> trainer = Trainer(callbacks=[ModelSummary(max_depth=2)])
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        if not isinstance(max_depth, int) or max_depth < -1:
            raise ConfigError(
                f"ModelSummary(max_depth={max_depth!r}): give the depth of submodules to show, -1"
                " for all, or 0 for none."
            )
        self._max_depth = max_depth
        self._summarize_kwargs = summarize_kwargs

    def on_fit_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._max_depth == 0:
            return
        # on all ranks: passing the example through the model may create lazy layers, or need the
        # other ranks
        summary = summarize(pl_module, self._max_depth)
        if trainer.is_global_zero:
            self.show(summary, **self._summarize_kwargs)
            for logger in as_loggers(trainer.loggers):
                logger.log_summary(str(summary))

    def show(self, summary: Summary, **summarize_kwargs: Any) -> None:
        """Show the summary. Called on rank 0; override to show it elsewhere."""
        info("\n" + str(summary) + "\n")


class RichModelSummary(ModelSummary):
    """As ModelSummary, in colour, on standard output.

    Args:
        max_depth: how deep to look for submodules; -1: to the bottom, 0: no table.
        summarize_kwargs: `header_style`, a style of rich such as `bold magenta`.

    Example:
        >>> trainer = Trainer(callbacks=[RichModelSummary(max_depth=2, header_style="bold green")])
    """

    def show(self, summary: Summary, **summarize_kwargs: Any) -> None:
        """Show the summary on the terminal."""
        from rich.console import Console
        from rich.table import Table

        console = Console()
        console.print(
            summary.table(header_style=summarize_kwargs.get("header_style", "bold magenta"))
        )
        totals = Table.grid(padding=(0, 2))
        for text, value in summary.totals().items():
            totals.add_row(f"[bold]{text}[/]", value)
        console.print(totals)
