"""Which samples the batches of a loader were made of.

This is for those who write predictions beside their samples.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DataLoader, IterableDataset, Sampler

from raylit.data.sampling.sampler import copied
from raylit.data.sampling.sources import Index, UserSampler
from raylit.runtime.aliases import Loaders
from raylit.runtime.messages import warn_once


class NotingBatchSampler(Sampler[list[Index]]):
    """Gives the batches of another batch sampler and keeps them.

    Args:
        batch_sampler: the other one; whatever is asked of this one but its batches is answered by
            it.

    Attributes:
        seen: the indices of each batch, from the start of the last iteration; loader workers are
            given batches ahead of time.
    """

    def __init__(self, batch_sampler: UserSampler) -> None:
        self.batch_sampler = batch_sampler
        self.seen: list[list[object]] = []

    def __iter__(self) -> Iterator[list[object]]:
        self.seen = []
        for batch in self.batch_sampler:
            self.seen.append(batch)
            yield batch

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __getattr__(self, name: str) -> object:
        if name == "batch_sampler":  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(self.batch_sampler, name)


def noting_indices(loader: Loaders) -> Loaders:
    """Return a loader whose `seen_indices` can be asked for.

    Where there are none, because data is not fetched by index, the loader itself.
    """
    if (
        not isinstance(loader, DataLoader)
        or isinstance(loader.dataset, IterableDataset)
        or loader.batch_sampler is None
    ):
        warn_once(
            f"Which samples the batches of the {type(loader).__name__} are made of cannot be told:"
            " only a DataLoader with batches of a data set with indices knows."
            " BasePredictionWriter gets no batch_indices.",
            key="batch indices",
        )
        return loader
    noting = copied(loader)
    noting.__dict__["batch_sampler"] = NotingBatchSampler(loader.batch_sampler)
    return noting


def seen_indices(loader: Loaders) -> list[list[Index]]:
    """Return the indices of each batch that `loader` read, and perhaps of some more.

    Empty if they cannot be told.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    return batch_sampler.seen if isinstance(batch_sampler, NotingBatchSampler) else []
