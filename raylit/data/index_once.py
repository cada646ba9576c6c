"""A batch of a TensorDataset by one index for each tensor, instead of one for each sample.

`DataLoader(TensorDataset(...))` fetches sample by sample and stacks them again: at 256 samples of
20 numbers some 1000 us a batch, by one index 60. The batches are the same, bit for bit. So it is
done only for torch's own loader, data set and collate function, without workers. Any sampler will
do, since it is asked as before. `RAYLIT_INDEX_ONCE=0` turns it off.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate
from torch.utils.data._utils.collate import collate_tensor_fn, default_collate_fn_map

from raylit.data.sampling.sampler import copied
from raylit.runtime.aliases import Batch, Loaders

NOTHING = nullcontext()


class IndexedOnce(Dataset[object]):
    """Passes for another data set, but gives whole batches, which are not to be collated.

    Args:
        dataset: a TensorDataset, or a Subset of one, or of one of these.

    Attributes:
        measure: gives a context for each batch; a profiler sets it.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.measure: Callable[[], AbstractContextManager[object]] | None = None
        self._tensors: tuple[Tensor, ...] = ()  # known to be plain

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> object:
        if name == "dataset":  # asked for while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: object) -> object:
        return self.dataset[index]

    def __getitems__(self, indices: list[int]) -> object:
        """Return the batch of these samples."""
        with NOTHING if self.measure is None else self.measure():
            places, dataset = indices, self.dataset
            while type(dataset) is Subset:
                places = [dataset.indices[index] for index in places]
                dataset = dataset.dataset
            tensors = dataset.tensors
            if tensors is not self._tensors:  # by the user, perhaps after each epoch
                if type(dataset) is not TensorDataset or not all(map(_is_plain_tensor, tensors)):
                    return self._as_torch(indices)
                self._tensors = tensors
            if not places or set(map(type, places)) != {int} or min(places) < 0:
                return self._as_torch(indices)  # of what else can be an index torch knows more
            index = torch.tensor(places)
            try:
                return [torch.index_select(tensor, 0, index) for tensor in tensors]
            except IndexError:
                return self._as_torch(indices)  # raises what the data set raises

    def _as_torch(self, indices: list[int]) -> object:
        several = getattr(self.dataset, "__getitems__", None)
        samples = [self.dataset[one] for one in indices] if several is None else several(indices)
        return default_collate(samples)


def index_once(loader: Loaders) -> object:
    """Return a copy of a loader that indexes once a batch, where that gives the same batches.

    Else the loader itself.
    """
    if type(loader) is not DataLoader or not _is_known(loader):
        return loader
    changed = copied(loader)
    # DataLoader forbids to set these attributes after construction
    changed.__dict__["dataset"] = IndexedOnce(loader.dataset)
    changed.__dict__["collate_fn"] = _as_it_is
    return changed


def _is_known(loader: DataLoader[object]) -> bool:
    """Tell whether nobody has changed anything on the way from the tensors to the batch."""
    is_plain = (
        loader.num_workers == 0
        and loader.batch_sampler is not None
        and loader.collate_fn is default_collate
        and default_collate_fn_map.get(Tensor) is collate_tensor_fn
        and os.environ.get("RAYLIT_INDEX_ONCE", "1") != "0"
    )
    dataset: Any = loader.dataset
    while is_plain and type(dataset) is Subset and "__getitems__" not in vars(dataset):
        dataset = dataset.dataset
    is_whole = type(dataset) is TensorDataset and "__getitems__" not in vars(dataset)
    return is_plain and is_whole and all(map(_is_plain_tensor, dataset.tensors))


def _is_plain_tensor(tensor: Tensor) -> bool:
    """Tell whether an index gives the same as stacked rows of a tensor, memory layout and all."""
    is_bare = type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_quantized
    if not is_bare or tensor.requires_grad or not tensor.is_contiguous() or not tensor.ndim:
        return False
    return tensor.device.type == "cpu" and not (tensor.is_conj() or tensor.is_neg())


def _as_it_is(batch: Batch) -> object:
    return batch
