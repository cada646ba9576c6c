"""Lightning's place for samplers that give each rank its share, none twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import Any

from torch.utils.data import BatchSampler, DistributedSampler

__all__ = ["UnrepeatedDistributedSampler", "UnrepeatedDistributedSamplerWrapper"]


class UnrepeatedDistributedSampler(DistributedSampler[int]):
    """A DistributedSampler that pads nothing: ranks may have one sample more than others."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        assert isinstance(self.dataset, Sized)
        self.num_samples = len(range(self.rank, len(self.dataset), self.num_replicas))
        self.total_size = len(self.dataset)

    def __iter__(self) -> Iterator[int]:
        import torch

        assert isinstance(self.dataset, Sized)
        indices = list(range(len(self.dataset)))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.epoch)
            indices = torch.randperm(len(indices), generator=generator).tolist()
        return iter(indices[self.rank : self.total_size : self.num_replicas])


class UnrepeatedDistributedSamplerWrapper(UnrepeatedDistributedSampler):
    """An UnrepeatedDistributedSampler of the samples that another sampler gives."""

    def __init__(self, sampler: Iterable[int], *args: Any, **kwargs: Any) -> None:
        self.sampler = sampler
        super().__init__(list(sampler), *args, **kwargs)

    def __iter__(self) -> Iterator[int]:
        given = list(self.sampler)
        self.dataset = given  # type: ignore[assignment]
        return (given[index] for index in super().__iter__())


class _IndexBatchSamplerWrapper(BatchSampler):
    """Notes which samples the batches were made of."""

    def __init__(self, batch_sampler: BatchSampler) -> None:
        self.batch_sampler = batch_sampler
        self.seen_batch_indices: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        self.seen_batch_indices = []
        for batch in self.batch_sampler:
            self.seen_batch_indices.append(batch)
            yield batch

    def __len__(self) -> int:
        return len(self.batch_sampler)
