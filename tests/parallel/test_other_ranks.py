"""A fit that was begun by some number of ranks goes on with another.

Each sample of the epoch once, sums over the ranks kept.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

import raylit as pl
from raylit.callbacks import Callback
from raylit.checkpoint import load, save
from tests.lazy import torchmetrics
from tests.quiet import BARE
from tests.ranks import run_on_ranks, run_on_two_ranks

SAMPLES = 48


class Numbers(Dataset[Tensor]):
    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index)])


class Net(pl.LightningModule):
    """Counts what it sees, and learns its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.nn.Parameter(torch.zeros(1))
        self.sum, self.average = torchmetrics.SumMetric(), torchmetrics.MeanMetric()
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = batch["a"] if isinstance(batch, dict) else batch
        self.seen += [(self.current_epoch, int(number)) for number in batch.reshape(-1)]
        self.sum(batch)
        self.average(batch)
        self.log("sum", self.sum, on_step=False, on_epoch=True)
        self.log("average", self.average, on_step=False, on_epoch=True)
        self.log("mean", batch.mean(), on_step=False, on_epoch=True)
        self.log("total", batch.sum(), on_step=False, on_epoch=True, reduce_fx="sum")
        self.log("largest", batch.max(), on_step=False, on_epoch=True, reduce_fx="max")
        return (self.mean - batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Saves(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.progress.total_batches}.ckpt")


class Epochs(Callback):
    """Keeps the values of the epochs, and the batches of each."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.lengths: list[tuple[int, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.lengths.append((trainer.progress.batch, trainer.num_training_batches))

    def on_train_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def batches(kind: str) -> Any:
    if kind == "own batches":
        return DataLoader(Numbers(), batch_sampler=Batches(RandomSampler(Numbers()), 3, False))
    if kind == "generator":
        return DataLoader(
            Numbers(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(9)
        )
    return DataLoader(
        Numbers(),
        batch_size=3,
        shuffle=kind != "in order",
        num_workers=2 if kind == "workers" else 0,
    )


class Batches(BatchSampler):
    """A batch sampler of one's own, which is not taken apart."""


KINDS = ("shuffled", "in order", "own batches", "generator", "workers")


def fit(folder: Path, kind: str, ckpt_path: Path | None, **arguments: Any) -> tuple[Net, Epochs]:
    warnings.simplefilter("ignore")
    pl.seed_everything(3 if ckpt_path is None else 77, verbose=False)
    net, epochs = Net(), Epochs()
    saves = [Saves(folder)] if folder is not None else []
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[epochs, *saves],
        default_root_dir=folder,
        **BARE,
        **arguments,
    )
    trainer.fit(net, batches(kind), ckpt_path=ckpt_path)
    return net, epochs


def first_on_two(folder: str) -> Any:
    found = {}
    for kind in KINDS:
        (Path(folder) / kind).mkdir(exist_ok=True)
        net, _ = fit(Path(folder) / kind, kind, None)
        found[kind] = net.seen
    return found


def then_on_two(folder: str) -> Any:
    found = {}
    for kind in KINDS:
        net, epochs = fit(Path(folder) / kind / "two", kind, Path(folder) / kind / "5.ckpt")
        found[kind] = (net.seen, epochs.rows, epochs.lengths)
    return found


def of_epoch(seen: list[tuple[int, int]], epoch: int) -> list[int]:
    return [number for which, number in seen if which == epoch]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """The folder of the checkpoints of fits of two ranks, and what each rank saw."""
    folder = tmp_path_factory.mktemp("by_two")
    return (folder, *run_on_two_ranks(first_on_two, folder))


def test_two_ranks_then_one(tmp_path: Path, by_two: tuple[Path, Any, Any]) -> None:
    folder, zero, one = by_two
    for kind in KINDS:
        for batch in (1, 4, 7, 8):
            net, epochs = fit(tmp_path, kind, folder / kind / f"{batch}.ckpt")
            before = of_epoch(zero[kind], 0)[: 3 * batch] + of_epoch(one[kind], 0)[: 3 * batch]
            assert sorted(before + of_epoch(net.seen, 0)) == list(range(SAMPLES)), (kind, batch)
            assert sorted(of_epoch(net.seen, 1)) == list(range(SAMPLES)), (kind, batch)
            # 8 batches of two ranks have become 16 of one
            assert epochs.lengths == [(batch + 2 * (8 - batch),) * 2, (16, 16)], (kind, batch)


def test_the_values_of_the_epoch_are_those_of_all_samples(
    tmp_path: Path, by_two: tuple[Path, Any, Any]
) -> None:
    for batch in (1, 5):
        epochs = Epochs()
        trainer = pl.Trainer(max_epochs=1, callbacks=[epochs], default_root_dir=tmp_path, **BARE)
        trainer.fit(Net(), batches("shuffled"), ckpt_path=by_two[0] / "shuffled" / f"{batch}.ckpt")
        mean = (SAMPLES - 1) / 2
        assert epochs.rows == [
            pytest.approx(
                {
                    "sum": mean * SAMPLES,
                    "average": mean,
                    "mean": mean,
                    "total": mean * SAMPLES,
                    "largest": SAMPLES - 1,
                }
            )
        ]


def test_one_rank_then_two(tmp_path: Path) -> None:
    alone = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        alone[kind] = fit(tmp_path / kind, kind, None)[0].seen
    zero, one = run_on_two_ranks(then_on_two, tmp_path)
    for kind in KINDS:
        (seen, rows, lengths), (others, more, _) = zero[kind], one[kind]
        # 15 samples were read, 33 are left: 17 for each rank, of which one comes twice
        rest = of_epoch(seen, 0) + of_epoch(others, 0)
        before = of_epoch(alone[kind], 0)[:15]
        if kind == "own batches":  # 11 batches are left, of which one comes twice
            assert (
                len(rest) == 36
                and set(before + rest) == set(range(SAMPLES))
                and not set(before) & set(rest)
            )
        else:
            assert (
                len(rest) == 34
                and set(before + rest) == set(range(SAMPLES))
                and not set(before) & set(rest)
            )
        assert lengths == [(5 + 6,) * 2, (8, 8)], kind
        assert sorted(of_epoch(seen, 1) + of_epoch(others, 1)) == list(range(SAMPLES)), kind
        assert rows == more
        # and back again, in the same epoch
        net, _ = fit(tmp_path / "back", kind, tmp_path / kind / "two" / "7.ckpt")
        again = before + of_epoch(seen, 0)[:6] + of_epoch(others, 0)[:6]
        assert sorted(again + of_epoch(net.seen, 0)) == list(range(SAMPLES)), kind


def test_gradients_of_a_window_keep_their_mean(tmp_path: Path) -> None:
    """Saved by two ranks in the middle of a window, as a step of one.

    The mean over ranks and batches of the window.
    """
    run_on_two_ranks(window_on_two, tmp_path)
    saved = load(tmp_path / "1.ckpt")
    gradients = [rank["gradients"]["mean"] for rank in saved["raylit"]["ranks"]]
    assert not torch.equal(*gradients)
    net = Net()
    trainer = pl.Trainer(
        max_epochs=1,
        accumulate_grad_batches=2,
        max_steps=1,
        default_root_dir=tmp_path,
        **BARE,
    )
    trainer.fit(net, batches("in order"), ckpt_path=tmp_path / "1.ckpt")
    # Of the samples 6, 7 and 8, as half of the window; the ranks have read 0 to 5
    of_the_rest = -7.0
    assert net.mean.item() == pytest.approx(
        -0.01 * (sum(gradients).item() / 2 + of_the_rest), abs=1e-6
    )


def window_on_two(folder: str) -> None:
    warnings.simplefilter("ignore")
    trainer = pl.Trainer(
        max_epochs=1,
        accumulate_grad_batches=2,
        max_steps=1,
        callbacks=[Saves(Path(folder))],
        default_root_dir=folder,
        **BARE,
    )
    trainer.fit(Net(), batches("in order"))


def test_another_batch_size(tmp_path: Path) -> None:
    (tmp_path / "in order").mkdir()
    fit(tmp_path / "in order", "in order", None)
    net = Net()
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **BARE)
    trainer.fit(
        net, DataLoader(Numbers(), batch_size=5), ckpt_path=tmp_path / "in order" / "4.ckpt"
    )
    assert of_epoch(net.seen, 0) == list(range(12, SAMPLES))


def test_a_limit_counts_the_batches_of_a_rank(tmp_path: Path) -> None:
    (tmp_path / "in order").mkdir()
    fit(tmp_path / "in order", "in order", None, limit_train_batches=10)
    checkpoint = load(tmp_path / "in order" / "4.ckpt")
    read = checkpoint["raylit"]["ranks"][0]["loaders"][0]
    read["num_ranks"] = read["plan"]["num_ranks"] = 2  # as if there had been two
    read["cursor"] *= 2
    checkpoint["raylit"]["ranks"] *= 2
    save(checkpoint, tmp_path / "two.ckpt")
    net, epochs = fit(tmp_path / "again", "in order", tmp_path / "two.ckpt", limit_train_batches=10)
    assert of_epoch(net.seen, 0) == list(range(24, 24 + 18))
    assert epochs.lengths == [(10, 10), (10, 10)]


def first_on_four(folder: str) -> Any:
    return fit(Path(folder), "shuffled", None)[0].seen


def then_on_two_of_four(folder: str) -> Any:
    return fit(Path(folder) / "two", "shuffled", Path(folder) / "3.ckpt")[0].seen


@pytest.mark.long
def test_four_ranks_then_two_or_one(tmp_path: Path) -> None:
    before = [
        number
        for seen in run_on_ranks(4, first_on_four, tmp_path)
        for number in of_epoch(seen, 0)[:9]
    ]
    assert len(before) == 36
    two = [
        number
        for seen in run_on_two_ranks(then_on_two_of_four, tmp_path)
        for number in of_epoch(seen, 0)
    ]
    one = of_epoch(fit(tmp_path / "one", "shuffled", tmp_path / "3.ckpt")[0].seen, 0)
    assert sorted(before + two) == sorted(before + one) == list(range(SAMPLES))
