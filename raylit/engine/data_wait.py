"""The share of training's time that went by waiting for data, and ways to make it less.

Two readings of the clock a step, around the fetching of the batch. On a GPU a step that waits may
cost nothing, if the device still computes earlier work: the share is an upper bound.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader

from raylit.data import RayDataLoader
from raylit.data.positioned import PositionedLoader
from raylit.runtime.messages import info

if TYPE_CHECKING:
    from raylit.engine.run import Run

SHOWN_FROM = 0.1  # a share that is worth a word
LEAST_S = 5.0  # in all; what is less may be the start of worker processes, once


class DataWait:
    """The time that training took, and waited for batches; the loop writes it.

    Attributes:
        waited_s: seconds in which the loop waited for its next batch, of this process.
    """

    def __init__(self) -> None:
        self.waited_s = 0.0
        self._trained_s = 0.0
        self._since: float | None = None

    def begin(self) -> None:
        """Training begins, or goes on after a validation."""
        self._since = time.monotonic()

    def end(self) -> None:
        """It makes room for something else."""
        if self._since is not None:
            self._trained_s += time.monotonic() - self._since
            self._since = None

    @property
    def trained_s(self) -> float:
        """The seconds of training so far, waiting among them."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self._trained_s + running

    @property
    def share(self) -> float:
        """The share of training's time that was waiting; 0 until there is enough to tell."""
        return self.waited_s / self.trained_s if self.waited_s >= LEAST_S else 0.0


def tell(run: Run) -> None:
    """Say at the end of a fit how long it waited for data, if it was long, and how to wait less."""
    share = run.data.wait.share
    if share >= SHOWN_FROM and "train" in run.data.loaders:
        remedies = dict.fromkeys(map(remedy, run.data.loaders["train"].flattened))
        info(
            f"Training waited for data {share:.0%} of its time ({run.data.wait.waited_s:.0f} s)."
            f" {' '.join(remedies)}"
        )


def remedy(loader: object) -> str:
    """Return the way to make a loader faster, as an argument to change."""
    if isinstance(loader, PositionedLoader):
        return loader.remedy
    if isinstance(loader, RayDataLoader):
        return "Let Ray Data read further ahead: RayDataLoader(prefetch_batches=4)."
    if not isinstance(loader, DataLoader):
        return f"Read ahead in the {type(loader).__name__}, or give a DataLoader(num_workers=2)."
    if loader.num_workers == 0:
        return "Let processes read ahead: DataLoader(num_workers=2)."
    more = 2 * loader.num_workers
    return f"Let more processes read ahead: DataLoader(num_workers={more})."
