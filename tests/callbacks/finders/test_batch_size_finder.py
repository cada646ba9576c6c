from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import raylit as pl
from raylit.callbacks import BatchSizeFinder
from raylit.callbacks.finders.batch_size_finder import (
    is_oom_error,
    largest,
    largest_power,
    num_samples,
)
from raylit.data import CombinedLoader
from raylit.errors import ConfigError
from raylit.testing import RandomDataset, TinyModel
from tests.quiet import UNLOGGED
from tests.ranks import run_on_two_ranks


class Limited(TinyModel):
    """Runs out of memory with more than `limit` samples."""

    def __init__(self, limit: int = 20, batch_size: int = 4, length: int = 100) -> None:
        super().__init__(batch_size)
        del self.hparams["batch_size"]
        self.limit, self.length = limit, length

    def step(self, batch: Any) -> Any:
        if len(batch) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().step(batch)

    def _loader(self, seed: int) -> Any:
        return DataLoader(
            RandomDataset(32, self.length, seed), batch_size=self.batch_size, shuffle=True
        )


def fit(model: Any, finder: Any, folder: Path, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        callbacks=[finder],
        enable_checkpointing=False,
        default_root_dir=folder,
        **{**UNLOGGED, "max_epochs": 2, **settings},
    )
    trainer.fit(model)
    return trainer


ANY_SEARCH = {
    "limit": st.integers(1, 300),
    "start": st.integers(1, 400),
    "length": st.one_of(st.integers(1, 500), st.just(float("inf"))),
    "max_val": st.integers(1, 600),
}


@given(**ANY_SEARCH)
def test_the_largest_size_that_fits_is_found(
    limit: int, start: int, length: float, max_val: int
) -> None:
    tried: dict[int, bool] = {}

    def fits(size: int) -> bool:
        assert size not in tried, "no size is tried twice"
        tried[size] = size <= limit
        return tried[size]

    found = largest(fits, min(start, max_val), length, 100, max_val)
    assert tried[found]
    assert found in (max_val, limit) or found >= length


@given(**ANY_SEARCH)
def test_the_largest_power_that_fits_is_found(
    limit: int, start: int, length: float, max_val: int
) -> None:
    tried: dict[int, bool] = {}

    def fits(size: int) -> bool:
        tried[size] = size <= limit
        return tried[size]

    found = largest_power(fits, min(start, max_val), length, 100, max_val)
    assert tried[found]
    assert found == max_val or found >= length or 2 * found > limit or 2 * found + 1 in tried


@pytest.mark.parametrize("search", [largest, largest_power])
def test_memory_that_does_not_suffice_for_one_sample_is_an_error(search: Any) -> None:
    with pytest.raises(ConfigError, match="one sample"):
        search(lambda size: False, 8, 100, 25, 8192)


@pytest.mark.parametrize(
    ("error", "is_full"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (torch.OutOfMemoryError("any text"), True),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            True,
        ),
        (
            RuntimeError(
                "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a"
                " non-contiguous input."
            ),
            True,
        ),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("CUDA out of memory"), False),
    ],
)
def test_what_counts_as_full_memory(error: Exception, is_full: bool) -> None:
    assert is_oom_error(error) == is_full


def test_the_host_says_in_these_words_that_its_memory_is_full() -> None:
    with pytest.raises(RuntimeError) as by_torch:
        torch.empty(1 << 60)
    with pytest.raises(MemoryError) as by_numpy:
        np.empty(1 << 57)
    assert is_oom_error(by_torch.value)
    assert is_oom_error(by_numpy.value)


def test_a_size_of_which_the_data_has_not_enough_samples_but_which_is_too_large_is_left_again(
    tmp_path: Path,
) -> None:
    for mode, found in (("power", 32), ("binsearch", 40)):
        finder = BatchSizeFinder(mode, margin=0.0)
        fit(Limited(limit=40, length=50), finder, tmp_path)
        assert finder.optimal_batch_size == found


def test_the_first_size_is_really_tried_and_max_val_never_exceeded(tmp_path: Path) -> None:
    for arguments, found in (
        ({"init_val": 64}, 16),
        ({"init_val": 5, "max_val": 12}, 12),
        ({"max_val": 6, "mode": "binsearch", "margin": 0}, 6),
    ):
        finder, model = BatchSizeFinder(**arguments), Limited()  # type: ignore[arg-type]
        fit(model, finder, tmp_path)
        assert (finder.optimal_batch_size, model.batch_size) == (found, found)


def test_a_search_leaves_no_trace(tmp_path: Path) -> None:
    """A fit with the finder ends, bit for bit, like one that began with the size it finds."""
    states = []
    for batch_size, finder in ((4, BatchSizeFinder()), (16, pl.callbacks.Callback())):
        torch.manual_seed(0)
        model = Limited(batch_size=batch_size)
        trainer = fit(model, finder, tmp_path)
        weights = torch.cat([value.flatten() for value in model.state_dict().values()])
        states.append(
            (
                weights.tolist(),
                torch.rand(1).item(),
                trainer.global_step,
                model.training,
                trainer.num_training_batches,
            )
        )
    assert states[0] == states[1]
    assert not list(tmp_path.rglob("*"))


def test_a_search_in_a_later_epoch_changes_the_batches_from_then_on(tmp_path: Path) -> None:
    class Later(BatchSizeFinder):
        def on_fit_start(self, *args: Any) -> None: ...

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                self.scale_batch_size(trainer, pl_module)

    model = Limited()
    trainer = fit(model, Later(), tmp_path, max_epochs=3)
    assert model.batch_size == 16
    assert trainer.global_step == 25 + 7 + 7
    assert trainer.num_val_batches == [7]


def test_a_loader_that_does_not_heed_the_attribute_is_told(tmp_path: Path) -> None:
    model = Limited()
    model._loader = lambda seed: DataLoader(RandomDataset(32, 32, seed), batch_size=8)  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match=r"had batches of \[8\] whatever batch_size was"):
        fit(model, BatchSizeFinder(max_trials=3), tmp_path)


def test_an_error_puts_the_attribute_back(tmp_path: Path) -> None:
    model = Limited()
    model.step = lambda batch: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        fit(model, BatchSizeFinder(), tmp_path)
    assert model.batch_size == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"mode": "cubic"}, "binsearch"),
        ({"margin": 1.0}, "less than 1"),
        ({"margin": -0.1}, "at least 0"),
        ({"init_val": 0}, "init_val=0"),
        ({"steps_per_trial": 0}, "steps_per_trial=0"),
    ],
)
def test_wrong_arguments(arguments: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        BatchSizeFinder(**arguments)


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finds no size.*batch_arg_name"):
        fit(Limited(), BatchSizeFinder(batch_arg_name="size"), tmp_path)
    trainer = pl.Trainer(
        callbacks=[BatchSizeFinder()], default_root_dir=tmp_path, max_epochs=1, **UNLOGGED
    )
    with pytest.raises(
        ConfigError, match=r"loaders that were given to Trainer.fit directly.*train_dataloader\(\)"
    ):
        trainer.fit(Limited(), DataLoader(RandomDataset(32, 8)))


def test_samples_are_counted_where_that_is_possible() -> None:
    one, other = DataLoader(RandomDataset(4, 6)), DataLoader(RandomDataset(4, 9))
    assert [
        num_samples(CombinedLoader([one, other], mode))
        for mode in ("min_size", "max_size", "max_size_cycle", "sequential")
    ] == [
        6,
        9,
        9,
        15,
    ]
    assert num_samples(CombinedLoader([[1, 2], one])) == 6
    assert num_samples(CombinedLoader([[1, 2]])) == float("inf")


def search_on_ranks(folder: str) -> str:
    with pytest.raises(ConfigError) as raised:
        fit(Limited(), BatchSizeFinder(), Path(folder))
    return str(raised.value)


def test_several_ranks_are_refused(tmp_path: Path) -> None:
    assert all("num_workers=0" in text for text in run_on_two_ranks(search_on_ranks, tmp_path))
