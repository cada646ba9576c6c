"""Epochs of training are equally long on all ranks, whatever data these have.

Else some would wait for ever for the gradients of others.

Where all loaders can tell their length, the ranks agree once, when the data is prepared. Where one
cannot, or might be wrong, they agree on each batch: one small collective in host memory, a batch
ahead of the one that is trained on if the end is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch.utils.data import DataLoader, IterableDataset

from raylit.data.positioned import PositionedLoader
from raylit.data.ray_dataset import RayDataLoader
from raylit.errors import DataError

if TYPE_CHECKING:
    from raylit.data.combined import Item
    from raylit.parallel import World
    from raylit.parallel.strategy import Uneven


# what a rank tells the others of itself
READS = 0
READS_AGAIN = 1
ENDS = 2


@dataclass
class Even:
    """How the ranks, with different numbers of batches, come to the same end of an epoch.

    Attributes:
        world: the ranks.
        policy: `finish`: those that are through begin again until all are; `drop`: the first that
            is through ends it for all.
        number: batches of an epoch; infinity if that is not known.
        agrees: whether the ranks agree on each batch.
        passed: of this epoch, the batches of this rank before it began its data again.
    """

    world: World
    policy: Uneven
    number: float
    agrees: bool
    passed: int = 0

    def batches(
        self, items: Iterator[Item], again: Callable[[], Iterator[Item]], index: int
    ) -> Iterator[Item]:
        """Give batches until the epoch ends on all ranks.

        Args:
            items: this rank's.
            again: begins them anew.
            index: number of the first.

        Raises:
            DataError: a rank has no more batches, though it is to go on; on all ranks, or on the
                one whose loader gives fewer than its length.
        """
        while index < self.number:
            item = next(items, None)
            if self.agrees:
                reads = READS_AGAIN if self.passed else READS
                states = self.world.gather_numbers(ENDS if item is None else reads)
                # READS is 0: `all` says that every rank has read all its data once
                if all(states) or (self.policy == "drop" and any(states)):
                    return
                if item is None:
                    items = again()
                    self.passed = index
                    item = next(items, None)
                # Every rank comes to this second collective, or none: `states` is the same on all
                if ENDS in states and not all(have := self.world.gather_numbers(item is not None)):
                    raise DataError(f"{_ranks(have)} no batch {index}; they {_WHY}")
            elif item is None:
                items = again()
                self.passed = index
                item = next(items, None) if self.policy == "finish" else None
                if item is None:
                    raise DataError(
                        f"The training data of rank {self.world.rank} ended after {index} batches,"
                        f" before the length it gave, and {_WHY}"
                    )
            yield item[0], index, 0  # type: ignore[index]
            index += 1


_WHY = (
    "cannot be begun again, so this epoch cannot be finished together with the other ranks. Give"
    " each rank data that can be read again, or end the epoch with the first rank that is through:"
    ' Trainer(strategy=DDPStrategy(uneven="drop")), or likewise FSDPStrategy.'
)


def _ranks(have: Sequence[int]) -> str:
    return (
        f"Of {len(have)} ranks {', '.join(str(rank) for rank, has in enumerate(have) if not has)}"
        " have"
    )


def is_certain(loader: object) -> bool:
    """Tell whether `loader` gives as many batches as it says."""
    if isinstance(loader, RayDataLoader):
        return loader.is_certain
    if isinstance(loader, DataLoader):
        return not isinstance(loader.dataset, IterableDataset)
    return isinstance(loader, (Sequence, range, PositionedLoader))


def make_even(
    number: float, loaders: Sequence[object], world: World, policy: Uneven
) -> Even | None:
    """Let the ranks agree on how long an epoch is; None if they have equally many batches.

    Args:
        number: batches of this rank, infinity if that is not known.
        loaders: what it reads.
        world: the ranks; all come here.
        policy: what is to be done if they have not.

    Raises:
        DataError: a rank has none, while others have; or a rank could not begin its data again.
    """
    if world.size == 1:
        return None
    told = world.all_gather_object((number, all(map(is_certain, loaders))))
    numbers = [one for one, _ in told]
    agrees = not all(certain for _, certain in told)
    if not agrees and len(set(numbers)) == 1:
        return None
    together = min(numbers) if policy == "drop" else max(numbers)
    if float("inf") in numbers:
        together = float("inf")
    if policy == "finish" and not agrees and 0 in numbers:
        raise DataError(f"{_ranks(numbers)} no training batch at all; they {_WHY}")
    if policy == "finish" and any(
        isinstance(loader, RayDataLoader) and loader.is_shared for loader in loaders
    ):
        raise DataError(
            "The ranks may have different numbers of training batches, and those that are through"
            " cannot begin a Ray Dataset again before the others are: all ranks begin it together."
            " Let the first that is through end the epoch:"
            ' Trainer(strategy=DDPStrategy(uneven="drop")), or likewise FSDPStrategy; or give'
            " RayDataLoader a batch_size, and the other loaders equally many batches on each rank."
        )
    return Even(world, policy, together, agrees)
