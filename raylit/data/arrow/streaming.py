"""Reading in windows of some pieces, so that memory is bounded however large the data is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from raylit.data.arrow.ahead import ahead
from raylit.data.arrow.columns import Rows, joined
from raylit.data.arrow.order import Share, Windows

if TYPE_CHECKING:
    from raylit.data.arrow.dataset import ArrowDataset

Run = tuple[int, int, int]  # a window, and the numbers of this rank's rows that lie in it


class WindowReader:
    """Reads this rank's rows of an order in windows.

    Args:
        part: what is read.
        plan: the windows of the epoch.
        share: this rank's positions.
        chunk_rows: how many are given at a time.
        keeps_window: whether the last window stays in memory, for a reader that is asked for some
            rows of it at a time; else the next is decoded while one is used.
    """

    def __init__(
        self,
        part: ArrowDataset,
        plan: Windows,
        share: Share,
        chunk_rows: int,
        keeps_window: bool = False,
    ) -> None:
        self.part = part
        self.plan = plan
        self.share = share
        self.chunk_rows = chunk_rows
        self._keeps = keeps_window
        self._kept: tuple[int, Rows] | None = None

    def chunks(self, start: int, stop: int) -> Iterator[Rows]:
        """Give this rank's rows from number `start` to `stop`, some at a time."""
        runs = self._runs(start, stop)
        if self._keeps:
            for run in runs:
                yield from self._mixed(self._window(run[0]), run)
        elif self.plan.key:
            # A depth of 1: with the one in use that makes the two that are promised to be in memory
            for rows, run in ahead(((self._window(run[0]), run) for run in runs), 1):
                yield from self._mixed(rows, run)
                del rows
        else:
            for run in runs:
                yield from self._in_order(*run)

    def _runs(self, start: int, stop: int) -> Iterator[Run]:
        """Give each window with the numbers of this rank's rows that lie in it."""
        share = self.share
        step = 1 if share.mode == "predict" else share.size
        number = start
        while number < stop:
            first = int(share.positions(number, number + 1))
            window = self.plan.find(first)
            room = self.plan.starts[window + 1] - first
            last = min(stop, number + -(-room // step))
            # From `wrap` on rows come a second time, and positions begin again from the first
            if number < share.wrap:
                last = min(last, share.wrap)
            yield window, number, last
            number = last

    def _window(self, window: int) -> Rows:
        """Decode the pieces of a window."""
        if self._kept is not None and self._kept[0] == window:
            return self._kept[1]
        self._kept = None  # two are not in memory at the same time
        pieces = (rows for piece in self.plan.pieces[window] for rows in self.part.decoded(piece))
        rows = joined(pieces, self.plan.starts[window + 1] - self.plan.starts[window])
        if self._keeps:
            self._kept = (window, rows)
        return rows

    def _mixed(self, rows: Rows, run: Run) -> Iterator[Rows]:
        """Give this rank's rows of a window, in the order of the epoch."""
        window, start, stop = run
        order = self.plan.order(window)
        begin = self.plan.starts[window]
        for first in range(start, stop, self.chunk_rows):
            places = self.share.positions(first, min(stop, first + self.chunk_rows)) - begin
            yield rows.take(places if order is None else order[places])

    def _in_order(self, window: int, first: int, last: int) -> Iterator[Rows]:
        """Give rows as they are decoded, without a window in memory."""
        positions = self.share.positions(first, last)
        begin = self.plan.starts[window]
        number = 0
        for piece in self.plan.pieces[window]:
            if begin + self.part.num_rows_of(piece) <= int(positions[number]):
                begin += self.part.num_rows_of(piece)  # read before
                continue
            for rows in self.part.decoded(piece):
                end = begin + len(rows)
                upto = int(torch.searchsorted(positions, end))
                if upto > number:
                    here = positions[number:upto] - begin
                    is_run = len(here) == int(here[-1] - here[0]) + 1
                    yield rows.slice(int(here[0]), len(here)) if is_run else rows.take(here)
                number = upto
                begin = end
                if number == len(positions):
                    return
