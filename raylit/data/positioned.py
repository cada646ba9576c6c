"""Loaders with an order of their own, dealt out to the ranks, that begin at any batch of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from raylit.runtime.aliases import Batch, Loaders, StateDict

if TYPE_CHECKING:
    from raylit.parallel import World


class PositionedLoader(ABC):
    """A loader whose order is a function of (seed, epoch, position).

    The loop asks it for any batch.

    It gives as many batches as its length says. `CombinedLoader` treats it as it does a
    PlannedSampler: it counts the batches and says where to begin, since the loader itself may have
    read ahead.

    Attributes:
        is_shuffled: whether rows come in another order in each epoch.
        goes_on: whether the next iteration reads the rest of an epoch.
        begins_at: the number of the batch that it then begins with.
        total: None, as its length is certain.
    """

    is_shuffled: bool
    goes_on: bool
    begins_at: int
    total: int | None = None

    @abstractmethod
    def prepared(
        self, stage: str, world: World | None, *, overfit: bool = False, drop: bool = False
    ) -> PositionedLoader:
        """Return a copy for one rank and one stage.

        Args:
            stage: `train`, `val`, `test` or `predict`.
            world: the ranks that share the rows; None: this one reads all.
            overfit: whether to read in order.
            drop: whether rows that cannot be dealt out evenly are left out rather than read twice.
        """

    @abstractmethod
    def __len__(self) -> int:
        """Return how many batches this rank reads, or has read, in this epoch."""

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """Begin an epoch, or the rest of one."""

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch; the loop calls it."""

    @property
    @abstractmethod
    def remedy(self) -> str:
        """The argument that makes it faster, for a fit that waits for it."""

    @property
    @abstractmethod
    def is_others(self) -> bool:
        """Whether other ranks, or batches of another size, have begun the epoch that is read."""

    @abstractmethod
    def length_for(self, num_ranks: int) -> int:
        """Return how many batches each of `num_ranks` ranks would have."""

    @abstractmethod
    def state_dict(self, batch: int | None = None) -> StateDict:
        """Return the order, the place, and by whom the epoch was read, as plain data.

        Args:
            batch: how many batches of the epoch were trained on; None: as many as were given.
        """

    @abstractmethod
    def go_on(self, state: StateDict, batch: int, counted: int) -> None:
        """Let the next iteration be the rest of the epoch that `state_dict` told of.

        Args:
            state: of this rank, or if they were another number, of any.
            batch: how many batches of the epoch were read, as this number of ranks counts them; 0:
                the next epoch is a new one.
            counted: as those counted who read them.
        """

    @abstractmethod
    def begin_anew(self) -> None:
        """Let the next iteration begin an epoch, whatever `go_on` told."""

    @abstractmethod
    def rest(self, loader: Loaders) -> Iterator[Batch]:
        """Begin to read the rest of the epoch, from batch `begins_at` on."""
