"""Batches of a TensorDataset by one index are those that torch gives, for any loader.

And of nothing else.
"""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
    random_split,
)

import raylit as pl
from raylit.data.combined import CombinedLoader
from raylit.data.index_once import IndexedOnce, index_once
from raylit.profilers import SimpleProfiler
from tests.quiet import BARE


class Listed(Sampler[Any]):
    """A user's own sampler."""

    def __init__(self, indices: list[Any]) -> None:
        self.indices = indices

    def __iter__(self) -> Any:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


@st.composite
def loaders(draw: st.DrawFn) -> DataLoader[Any]:
    """A loader as a user might make it, with torch's own classes and without."""
    num = draw(st.integers(1, 24))
    shapes = draw(st.lists(st.sampled_from([(), (3,), (2, 2), (0,)]), min_size=1, max_size=3))
    dtypes = [torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8, torch.complex64]
    tensors = []
    for shape in shapes:
        one = torch.arange(num * int(np.prod(shape)), dtype=torch.float64).reshape(num, *shape)
        one = one.to(draw(st.sampled_from(dtypes)))
        if draw(st.booleans()) and one.ndim > 1:
            one = one.transpose(0, 1).contiguous().transpose(0, 1)  # not contiguous
        if draw(st.booleans()) and one.is_floating_point():
            one.requires_grad_()
        tensors.append(one)
    dataset: Any = TensorDataset(*tensors)
    for _ in range(draw(st.integers(0, 2))):
        chosen = draw(
            st.lists(st.integers(-len(dataset), len(dataset) - 1), min_size=1, max_size=30)
        )
        form = draw(st.sampled_from(["list", "array", "tensor"]))
        indices: Any = {"list": chosen, "array": np.array(chosen), "tensor": torch.tensor(chosen)}[
            form
        ]
        dataset = Subset(dataset, indices)
    how = draw(
        st.sampled_from(["plain", "shuffle", "sampler", "batch_sampler", "weighted", "none"])
    )
    size = draw(st.integers(1, 7))
    index = st.integers(-len(dataset), len(dataset) - 1)
    strange = index | index.map(np.int64) | index.map(torch.tensor)
    listed = Listed(draw(st.lists(strange, max_size=20)))
    options: dict[str, Any] = {
        "plain": {"batch_size": size, "drop_last": draw(st.booleans())},
        "shuffle": {"batch_size": size, "shuffle": True},
        "sampler": {"batch_size": size, "sampler": listed},
        "batch_sampler": {
            "batch_sampler": BatchSampler(RandomSampler(dataset, True, 9), size, True)
        },
        "weighted": {"batch_size": size, "sampler": WeightedRandomSampler([1.0] * len(dataset), 8)},
        "none": {"batch_size": None},
    }[how]
    if draw(st.booleans()):
        options["collate_fn"] = draw(st.sampled_from([default_collate, list]))
    return DataLoader(dataset, **options)


def batches(loader: Any) -> Any:
    """Return all batches, or what was raised: torch stacks not all that can be an index."""
    torch.manual_seed(1)
    try:
        return list(loader)
    except (RuntimeError, IndexError, TypeError) as error:
        return [f"{type(error).__name__}: {error}"]


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one, other) and one.requires_grad == other.requires_grad
    elif isinstance(one, str):
        assert one == other
    else:
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second)


@settings(max_examples=300, deadline=None)
@given(loaders())
def test_both_ways_give_the_same_batches(loader: DataLoader[Any]) -> None:
    assert_same(batches(index_once(loader)), batches(loader))


def tensors() -> TensorDataset:
    return TensorDataset(torch.randn(20, 3), torch.arange(20))


def is_fast(loader: Any) -> bool:
    return isinstance(CombinedLoader(loader).readers[0].dataset, IndexedOnce)


def test_it_is_chosen_for_what_torch_brings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_fast(DataLoader(tensors(), 4, shuffle=True))
    assert is_fast(DataLoader(random_split(tensors(), [12, 8])[0], 4))
    assert is_fast(DataLoader(tensors(), batch_sampler=BatchSampler(Listed([3, 1]), 2, False)))

    class Own(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(index)[0] * 2

    class OwnLoader(DataLoader[Any]):
        pass

    own = DataLoader(Own(torch.ones(4)), 2)
    assert (
        not is_fast(own) and [batch.tolist() for batch, _, _ in CombinedLoader(own)] == [[2, 2]] * 2
    )
    assert not is_fast(OwnLoader(tensors(), 4))
    assert not is_fast(DataLoader(tensors(), 4, collate_fn=list))
    assert not is_fast(DataLoader(tensors(), 4, num_workers=1))
    assert not is_fast(DataLoader(tensors(), None))
    assert not is_fast(DataLoader(Subset(Own(torch.ones(4)), [0, 1]), 2))
    changed = tensors()
    changed.__getitems__ = lambda indices: [(torch.zeros(3),)] * len(indices)  # type: ignore[attr-defined]
    assert not is_fast(DataLoader(changed, 4))
    monkeypatch.setenv("RAYLIT_INDEX_ONCE", "0")
    assert not is_fast(DataLoader(tensors(), 4))


def test_an_index_that_is_not_there_raises_what_torch_raises() -> None:
    loader = DataLoader(tensors(), 2, sampler=Listed([0, 20]))
    with pytest.raises(IndexError) as of_torch:
        list(loader)
    with pytest.raises(IndexError) as ours:
        list(index_once(loader))
    assert str(ours.value) == str(of_torch.value)


def test_a_subset_whose_indices_change_is_followed() -> None:
    subset = Subset(tensors(), [0, 1, 2])
    loader = index_once(DataLoader(subset, 3))
    assert next(iter(loader))[1].tolist() == [0, 1, 2]
    subset.indices[:] = [5, 6, 7]  # type: ignore[index]
    assert next(iter(loader))[1].tolist() == [5, 6, 7]
    assert len(copy.deepcopy(loader).dataset) == 3


def test_tensors_that_are_replaced_are_followed() -> None:
    data = TensorDataset(torch.arange(4.0))
    loader: Any = index_once(DataLoader(Subset(data, [0, 3]), 2))
    assert next(iter(loader))[0].tolist() == [0, 3]
    data.tensors = (torch.arange(4.0) + 10,)
    assert next(iter(loader))[0].tolist() == [10, 13]
    data.tensors = (torch.arange(8.0)[::2],)  # not contiguous, as torch's own way has it
    assert next(iter(loader))[0].tolist() == [0, 6]


class Several(Dataset[Any]):
    """A data set that fetches a batch at once."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def __len__(self) -> int:
        return 6

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        self.calls.append(list(indices))
        return [torch.tensor(index) for index in indices]


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]).sum() if isinstance(batch, list) else self.net.bias.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder: Path, loader: Any, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(max_epochs=2, default_root_dir=folder,
                         **BARE, **options)  # fmt: skip
    trainer.fit(Net(), loader)
    return trainer


def test_a_data_set_with_getitems_is_asked_once_a_batch(tmp_path: Path) -> None:
    data = Several()
    fit(tmp_path, DataLoader(data, 4))
    assert data.calls == [[0, 1, 2, 3], [4, 5]] * 2


def test_the_profile_counts_it_and_users_see_their_own_loader(tmp_path: Path) -> None:
    loader = DataLoader(tensors(), 4)
    profiler = SimpleProfiler()
    trainer = fit(tmp_path, loader, profiler=profiler)
    assert len(profiler.recorded_durations["[TensorDataset].index_once"]) == 10
    assert trainer.train_dataloader is loader and type(loader.dataset) is TensorDataset


def test_it_is_much_faster() -> None:
    data = TensorDataset(torch.randn(20_000, 20), torch.randn(20_000))
    loader = DataLoader(data, 256)
    times: dict[str, list[float]] = {"torch": [], "once": []}
    for _ in range(3):
        for name, one in (("torch", loader), ("once", index_once(loader))):
            start = time.process_time()
            for _ in one:
                pass
            times[name].append(time.process_time() - start)
    assert min(times["torch"]) > 3 * min(times["once"])
