from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from raylit.data import identify


def digest(*datasets: Any) -> str:
    return identify([DataLoader(one) for one in datasets], "train", torch.zeros(2, 3)).digest


class Files(Dataset[Any]):
    def __init__(self, paths: list[Path], labels: np.ndarray[Any, Any]) -> None:
        self.paths = paths
        self.labels = labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("no sample is read")


def test_the_digest_is_that_of_the_content() -> None:
    x = torch.arange(12.0).reshape(6, 2)
    other = x.clone()
    other[3, 1] = -1
    assert digest(TensorDataset(x)) == digest(TensorDataset(x.clone()))
    different = [
        TensorDataset(x),
        TensorDataset(other),
        TensorDataset(x.reshape(2, 6)),
        Subset(TensorDataset(x), [0, 1]),
        Subset(TensorDataset(x), [1, 0]),
        Files([Path("a")], np.zeros(1)),
        Files([Path("b")], np.zeros(1)),
        Files([Path("a")], np.ones(1)),
    ]
    assert len({digest(one) for one in different}) == len(different)


def test_of_large_data_pieces_from_all_over_are_looked_at() -> None:
    x = torch.zeros(8_000_000)
    before = digest(TensorDataset(x))
    x[-1] = 1
    assert digest(TensorDataset(x)) != before


def test_name_rows_and_columns() -> None:
    parts = Subset(TensorDataset(torch.zeros(9, 4), torch.zeros(9, dtype=torch.long)), range(5))
    batch = [torch.zeros(3, 4), torch.zeros(3, dtype=torch.long)]
    found = identify([DataLoader(parts)], "validation", batch)
    assert (found.name, found.num_rows) == ("Subset of TensorDataset", 5)
    assert found.columns == {"0": ("float32", (4,)), "1": ("int64", ())}
    stream = identify([iter([1])], "test", {"x": torch.zeros(2)})
    assert (stream.num_rows, stream.columns) == (None, {"x": ("float32", ())})
