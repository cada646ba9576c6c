"""This process's place among the ranks of a run, for those who stand below `raylit.parallel`.

Every method that communicates must be called by all ranks, and does nothing when alone. The
implementation is `raylit.parallel.World`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

T = TypeVar("T")


class Ranks(Protocol):
    """Rank, size, device and collectives of this process."""

    @property
    def rank(self) -> int:
        """Number among all ranks."""

    @property
    def size(self) -> int:
        """How many ranks there are."""

    @property
    def local_rank(self) -> int:
        """Number among the ranks of this node."""

    @property
    def node_rank(self) -> int:
        """Number of this node."""

    @property
    def num_nodes(self) -> int:
        """How many nodes there are."""

    @property
    def device(self) -> torch.device:
        """Where this rank's model and batches live."""

    @property
    def is_zero(self) -> bool:
        """Whether this is rank 0."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def broadcast_object(self, value: T, src: int = 0) -> T:
        """Return the `value` of rank `src` on every rank; it is pickled."""

    def all_gather_object(self, value: T) -> list[T]:
        """Return every rank's `value`, in the order of ranks; they are pickled."""

    def all_gather(self, tensor: torch.Tensor, sync_grads: bool = False) -> torch.Tensor:
        """Return the ranks' tensors stacked, shape (size, *tensor.shape)."""

    def from_zero(self, action: Callable[[], T], failure: type[Exception]) -> T:
        """Return the result of rank 0's `action` on all ranks, or raise its exception there."""

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true on any rank."""

    @property
    def files_group(self) -> ProcessGroup:
        """The ranks as a process group of its own, for those who write files."""
