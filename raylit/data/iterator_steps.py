"""Steps that read the data themselves: `training_step(self, dataloader_iter)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from raylit.core.hooks import takes_argument
from raylit.data.combined import Item

if TYPE_CHECKING:
    from raylit.runtime.aliases import Batch


def takes_iterator(step: Callable[..., object]) -> bool:
    """Tell whether a step wants the iterator over the batches instead of a batch.

    Its argument is then called `dataloader_iter`.
    """
    return takes_argument(step, "dataloader_iter")


class Handover(Iterator[Item]):
    """The iterator that such a step is given.

    Each `next` of it reads (batch, batch_idx, dataloader_idx); moving the batch to the device is up
    to the step.

    Args:
        batches: what is read.
        length: how many there are, infinity if that is not known.
        tell: called with the batch and the number of its loader when it was read.

    Attributes:
        item: what was read last; before the first, `(None, 0, 0)`. It is what the hooks around the
            step get.
        done: whether nothing is left.
    """

    def __init__(
        self, batches: Iterator[Item], length: float, tell: Callable[[Batch, int], None]
    ) -> None:
        self._batches = batches
        self._tell = tell
        self._left = length
        self.item: Item = (None, 0, 0)
        self.done = length <= 0

    def __next__(self) -> Item:
        if self.done:
            raise StopIteration
        try:
            self.item = next(self._batches)
        except StopIteration:
            self.done = True
            raise
        self._left -= 1
        self.done = self._left <= 0
        self._tell(self.item[0], self.item[2])
        return self.item

    def turns(self) -> Iterator[Item]:
        """Yield the item read last, once for each step, until nothing is left; for the loop."""
        while not self.done:
            yield self.item

    def after(self, function: Callable[..., object]) -> Callable[..., object]:
        """Return a hook that comes after the step, and gets the batch that the step has read."""
        return lambda outputs, batch, batch_idx, *which: function(
            outputs, self.item[0], self.item[1], *(self.item[2:] if which else ())
        )
