"""Fits that read an ArrowDataset.

Cut, gone on with by other ranks, with a worker killed, with other data.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

import raylit as pl
from raylit.callbacks import Callback
from raylit.errors import DataError
from tests.quiet import BARE, UNLOGGED
from tests.ranks import run_on_ranks, run_on_two_ranks

ROWS = 50


def noisy(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Change what was read, by chance.

    At the top of a module, so that it goes to other processes.
    """
    return {**batch, "x": batch["x"] + 0.1 * torch.randn(len(batch["x"]))}


def write(folder: Path, rows: int = ROWS) -> Path:
    table = pa.table({"x": np.arange(rows) / rows, "row": np.arange(rows)})
    (folder / "parquet").mkdir(exist_ok=True)
    for number, start in enumerate(range(0, rows, 20)):
        path = folder / "parquet" / f"{number}.parquet"
        pq.write_table(table.slice(start, 20), path, row_group_size=6)
    path = folder / "rows.arrow"
    pyarrow.feather.write_feather(table, str(path), compression="uncompressed", chunksize=6)
    return folder


class Net(pl.LightningModule):
    """Learns the mean, and keeps which rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int]] = []
        self.evaluated: list[int] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.seen += [(self.current_epoch, row) for row in batch["row"].tolist()]
        return (self.mean - batch["x"]).square().mean()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.evaluated += batch["row"].tolist()
        self.log("val_loss", (self.mean - batch["x"]).square().mean())

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return batch["row"]

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Saves(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.progress.total_batches}.ckpt")


def loader(folder: Path, mode: str = "memory", transform: Any = None, **options: Any) -> Any:
    source = folder / "rows.arrow" if mode == "mapped" else folder / "parquet"
    dataset = pl.ArrowDataset(source, mode=mode, buffer_rows=18, transform=transform)
    return dataset.loader(**{"batch_size": 8, "shuffle": True, **options})


def fit(folder: Path, data: Any, ckpt_path: Any = None, epochs: int = 2, **arguments: Any) -> Net:
    torch.manual_seed(0)
    net = Net()
    trainer = pl.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        **BARE,
        **arguments,
    )
    trainer.fit(net, data, ckpt_path=ckpt_path)
    return net


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("mode", ["memory", "mapped", "stream"])
def test_a_fit_that_is_cut_ends_bit_for_bit_as_one_that_is_not(
    mode: str, num_workers: int, tmp_path: Path
) -> None:
    write(tmp_path)
    options: dict[str, Any] = {"mode": mode, "transform": noisy, "num_workers": num_workers}
    whole = fit(tmp_path, loader(tmp_path, **options), callbacks=[Saves(tmp_path)])
    assert len(whole.seen) == 2 * ROWS and len(set(whole.seen)) == 2 * ROWS
    for cut in (3, 7, 12):
        later = fit(tmp_path, loader(tmp_path, **options), tmp_path / f"{cut}.ckpt")
        assert torch.equal(later.mean, whole.mean)
        assert later.seen == whole.seen[8 * cut if cut < 7 else ROWS + 8 * (cut - 7) :]


def test_evaluation_and_prediction_in_order(tmp_path: Path) -> None:
    write(tmp_path)
    net = fit(tmp_path, {"a": loader(tmp_path)}["a"], val_check_interval=3)
    trainer = pl.Trainer(default_root_dir=tmp_path, **BARE)
    trainer.validate(net, pl.ArrowDataset(tmp_path / "parquet"))
    assert net.evaluated == list(range(ROWS))
    found = trainer.predict(net, loader(tmp_path, shuffle=False, drop_last=True))
    assert torch.cat(found).tolist() == list(range(ROWS))
    trainer = pl.Trainer(default_root_dir=tmp_path, **UNLOGGED, overfit_batches=2, max_epochs=2)
    with pytest.warns(UserWarning, match="shuffles, but overfit_batches reads it in order"):
        trainer.fit(net := Net(), loader(tmp_path))
    assert net.seen == [(epoch, row) for epoch in (0, 1) for row in range(16)]


def by_two_ranks(folder: str) -> list[tuple[int, int]]:
    return fit(Path(folder), loader(Path(folder), "stream"), callbacks=[Saves(Path(folder))]).seen


def by_three_ranks_later(folder: str) -> list[tuple[int, int]]:
    return fit(Path(folder), loader(Path(folder), "stream"), Path(folder) / "2.ckpt").seen


def test_other_ranks_go_on_within_an_epoch(tmp_path: Path) -> None:
    write(tmp_path)
    first = run_on_two_ranks(by_two_ranks, tmp_path)
    before = [row for seen in first for epoch, row in seen[:16] if epoch == 0]
    assert len(set(before)) == 32
    later = run_on_ranks(3, by_three_ranks_later, tmp_path)
    rest = [row for seen in later for epoch, row in seen if epoch == 0]
    assert len(rest) == ROWS - 32 and set(rest) | set(before) == set(range(ROWS))
    second = [row for seen in later for epoch, row in seen if epoch == 1]
    assert set(second) == set(range(ROWS)) and len(second) == ROWS + 1  # the last step repeats one
    alone = fit(tmp_path, loader(tmp_path, "stream"), tmp_path / "2.ckpt")
    assert len(alone.seen) == ROWS - 32 + ROWS


class Dies(Net):
    """Rank 1 is killed once, in the middle of the second epoch."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        is_there = self.global_rank == 1 and self.trainer.progress.total_batches == 6
        if is_there and not (self.folder / "killed").exists():
            (self.folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with open(self.folder / f"rank{self.global_rank}", "a") as file:
            place = self.trainer.progress.total_batches
            file.write(f"{place} {self.current_epoch} {batch['row'].tolist()}\n")
        return super().training_step(batch, batch_idx)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(290)
@pytest.mark.long
def test_a_worker_is_killed_on_ray(tmp_path: Path) -> None:
    write(tmp_path)
    torch.manual_seed(0)
    net = Dies(tmp_path)
    trainer = pl.Trainer(
        max_epochs=2,
        num_workers=2,
        max_failures=1,
        default_root_dir=tmp_path,
        callbacks=[pl.callbacks.RecoveryCheckpoint(every_n_steps=1)],
        **UNLOGGED,
    )
    trainer.fit(net, loader(tmp_path, "stream"))
    assert (tmp_path / "killed").exists()
    batches: dict[tuple[int, str], str] = {}
    for rank in (0, 1):
        for line in (tmp_path / f"rank{rank}").read_text().splitlines():
            place, _, rows = line.partition(" ")
            batches.setdefault((rank, place), rows)
            assert batches[rank, place] == rows  # a batch that comes again is the same
    for epoch in (0, 1):
        mine = [rows for rows in batches.values() if rows.startswith(f"{epoch} ")]
        seen = [int(row) for rows in mine for row in rows[3:-1].split(", ")]
        assert sorted(seen) == list(range(ROWS))


def test_other_data_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    fit(tmp_path, loader(tmp_path), callbacks=[Saves(tmp_path)])
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", ROWS + 3)
    for number in (3, 7):
        with pytest.raises(
            DataError, match=r"50 rows of data with the digest .*has 53.*other_data='accept'"
        ):
            fit(tmp_path, loader(tmp_path / "other"), tmp_path / f"{number}.ckpt")
    dataset = pl.ArrowDataset(tmp_path / "other" / "parquet", other_data="accept")
    with pytest.warns(UserWarning, match="goes on with them, at the same batch"):
        net = fit(tmp_path, dataset.loader(8, shuffle=True), tmp_path / "3.ckpt")
    assert len(net.seen) == ROWS + 3 - 24 + ROWS + 3


def test_an_order_of_all_rows_cannot_be_streamed(tmp_path: Path) -> None:
    write(tmp_path)
    fit(tmp_path, loader(tmp_path), callbacks=[Saves(tmp_path)])
    with pytest.raises(DataError, match="in an order that cannot be streamed"):
        fit(tmp_path, loader(tmp_path, "stream"), tmp_path / "3.ckpt")


def with_other_memory(folder: str) -> list[int]:
    """Rank 1 streams what rank 0 has in memory."""
    mode = "stream" if os.environ["RANK"] == "1" else "memory"
    return [row for _, row in fit(Path(folder), loader(Path(folder), mode), epochs=1).seen]


def with_other_files(folder: str) -> str:
    other = Path(folder) / "other" if os.environ["RANK"] == "1" else Path(folder)
    try:
        fit(Path(folder), loader(other))
    except DataError as error:
        return str(error)
    return ""


def test_ranks_agree_on_the_order_and_the_data(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", ROWS + 1)
    seen = run_on_two_ranks(with_other_memory, tmp_path)
    assert sorted(seen[0] + seen[1]) == list(range(ROWS))
    for told in run_on_two_ranks(with_other_files, tmp_path):
        assert "Rank 1 sees other data" in told and "51 rows" in told
