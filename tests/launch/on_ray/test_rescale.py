"""With another number of workers an elastic fit comes to the same weights.

It takes the same steps, with the same learning rates and validations.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import Callback, GradientAccumulationScheduler
from raylit.core.progress import Progress
from raylit.engine.worker import run_job
from raylit.launch.on_ray.rescale import ElasticPlan
from tests.quiet import BARE
from tests.ranks import run_on_two_ranks

SAMPLES, BATCH_SIZE = 48, 3
STEPS = 6  # of an epoch: that of two workers is limited to 6 of 8 batches


class Net(pl.LightningModule):
    """Writes down its samples, learning rates and validations."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 1)
        self.seen: list[tuple[int, int]] = []
        self.rates: dict[int, float] = {}
        self.validations: list[int] = []
        self.expected_steps: float = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        numbers, x = batch
        self.seen += [(self.global_step, int(number)) for number in numbers]
        self.rates[self.global_step] = self.trainer.optimizers[0].param_groups[0]["lr"]
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.validations.append(self.global_step)

    def configure_optimizers(self) -> Any:
        self.expected_steps = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 2},
        }


class Saves(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lengths: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.progress.total_batches}.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.lengths.append(trainer.num_training_batches)


def fit(
    folder: Path, size: int, ckpt_path: Path | None = None, strategy: str = "auto"
) -> dict[str, Any]:
    """Fit as a worker of an elastic job that has `size` of up to two workers."""
    warnings.simplefilter("ignore")
    pl.seed_everything(3, verbose=False)
    x = torch.randn(SAMPLES, 2, generator=torch.Generator().manual_seed(5))
    data = TensorDataset(torch.arange(SAMPLES), x)
    folder.mkdir(exist_ok=True)
    net, saves = Net(), Saves(folder)
    trainer = pl.Trainer(
        num_workers=(1, 2),
        max_epochs=2,
        limit_train_batches=STEPS,
        val_check_interval=2,
        callbacks=[saves],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        strategy=strategy,
        **BARE,
    )
    loaders = {
        "train": DataLoader(data, BATCH_SIZE, shuffle=True),
        "val": DataLoader(data, BATCH_SIZE),
    }
    job = trainer._job("fit", net, loaders, None, ckpt_path, None)
    job.rescale_plan = plan = ElasticPlan(size, trainer.num_workers)
    plan.adapt(trainer, net, "fit")
    run_job(job)
    return {
        "weights": {name: value.clone() for name, value in net.state_dict().items()},
        "seen": net.seen,
        "rates": net.rates,
        "validations": net.validations,
        "expected_steps": net.expected_steps,
        "steps": trainer.global_step,
        "loss": float(trainer.callback_metrics["loss"]),
        "batches": saves.lengths,
    }


def two_throughout(folder: str) -> Any:
    return fit(Path(folder) / "two", 2)


def two_after_one(folder: str) -> Any:
    return {
        batch: fit(Path(folder) / f"after {batch}", 2, Path(folder) / "one" / f"{batch}.ckpt")
        for batch in (6, 7, 12)
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A fit of two workers throughout."""
    folder = tmp_path_factory.mktemp("two")
    return folder, run_on_two_ranks(two_throughout, folder)


def check(found: list[dict[str, Any]], expected: list[dict[str, Any]], since: int) -> None:
    """The steps since one are those of the expected fit.

    A validation that is due at the saved one is made up for.
    """
    ours, theirs = found[0], expected[0]
    for name in ("rates", "validations"):
        values = theirs[name]
        wanted = (
            {step: rate for step, rate in values.items() if step >= since}
            if name == "rates"
            else [v for v in values if v >= since]
        )
        assert ours[name] == pytest.approx(wanted)
    assert (
        (ours["steps"], ours["expected_steps"])
        == (theirs["steps"], theirs["expected_steps"])
        == (2 * STEPS, 2 * STEPS)
    )
    for step in range(since, 2 * STEPS):
        samples = [
            sorted(number for one in fits for at, number in one["seen"] if at == step)
            for fits in (found, expected)
        ]
        assert samples[0] == samples[1]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    for name, value in theirs["weights"].items():
        torch.testing.assert_close(ours["weights"][name], value, rtol=1e-5, atol=1e-6)


def test_one_worker_takes_the_steps_of_two(tmp_path: Path, two: tuple[Path, list[Any]]) -> None:
    one = fit(tmp_path, 1)
    check([one], two[1], 0)
    assert one["batches"] == [2 * STEPS, 2 * STEPS]


@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 5])
def test_two_then_one(tmp_path: Path, two: tuple[Path, list[Any]], step: int) -> None:
    found = fit(tmp_path, 1, two[0] / "two" / f"{step}.ckpt")
    check([found], two[1], step)
    assert set(found["batches"]) == {2 * STEPS}


def test_one_then_two(tmp_path: Path, two: tuple[Path, list[Any]]) -> None:
    fit(tmp_path / "one", 1)
    zero, other = run_on_two_ranks(two_after_one, tmp_path)
    check([zero[6], other[6]], two[1], 3)
    check([zero[12], other[12]], two[1], STEPS)
    assert zero[6]["batches"] == [STEPS, STEPS]
    # within a step, whose first batch is in no step then
    seen = [
        sorted(
            number for one in (zero[7], other[7]) for at, number in one["seen"] if 3 <= at < STEPS
        )
    ]
    assert len(seen[0]) == 2 * BATCH_SIZE * 3 and zero[7]["steps"] == 2 * STEPS


def fsdp_throughout(folder: str) -> Any:
    return fit(Path(folder) / "two", 2, strategy="fsdp")


def fsdp_after_one(folder: str) -> Any:
    return fit(Path(folder) / "after", 2, Path(folder) / "one" / "6.ckpt", strategy="fsdp")


@pytest.mark.long
def test_fsdp(tmp_path: Path) -> None:
    two = run_on_two_ranks(fsdp_throughout, tmp_path)
    check([fit(tmp_path / "one after", 1, tmp_path / "two" / "3.ckpt", strategy="fsdp")], two, 3)
    fit(tmp_path / "one", 1, strategy="fsdp")
    check(run_on_two_ranks(fsdp_after_one, tmp_path), two, 3)


def adapted(
    size: int, most: int, net: Any = None, **arguments: Any
) -> tuple[pl.Trainer, ElasticPlan]:
    warnings.simplefilter("ignore")
    trainer = pl.Trainer(max_epochs=1, **BARE, **arguments)
    resized = ElasticPlan(size, most)
    resized.adapt(trainer, net or Net(), "fit")
    return trainer, resized


def test_what_becomes_of_the_batch() -> None:
    assert (
        adapted(4, 4)[1].policy
        == "global batch kept: accumulate_grad_batches=1; learning rate unchanged"
    )
    trainer, resized = adapted(2, 3, accumulate_grad_batches=2)
    assert (trainer.accumulate_grad_batches, resized.keeps_step) == (3, True)
    trainer, resized = adapted(3, 4)
    assert (trainer.accumulate_grad_batches, resized.keeps_step) == (1, False)
    assert (
        resized.policy
        == "batch of each worker kept, so that a step takes 3/4 of the data, since 4 batches cannot"
        " be dealt out evenly to 3 workers; schedules follow the samples seen; learning rate"
        " unchanged"
    )
    trainer, resized = adapted(1, 2, callbacks=[GradientAccumulationScheduler({2: 4})])
    assert (
        trainer.accumulate_grad_batches == 1
        and "since GradientAccumulationScheduler says" in resized.policy
    )
    manual = Net()
    manual.automatic_optimization = False
    trainer, resized = adapted(1, 2, manual)
    assert (
        trainer.accumulate_grad_batches == 1
        and "since training_step itself steps the optimizer" in resized.policy
    )
    assert (
        adapted(2, 2, manual)[1].policy
        == "global batch as it was asked for; learning rate unchanged"
    )


def test_schedules_go_as_far_in_an_epoch_as_with_all_the_workers() -> None:
    """Of 160 samples in batches of 4, four workers take 10 steps, and three of them 14."""
    loader: Any = SimpleNamespace(num_batches_of=lambda most, factor: 10)
    _, three = adapted(3, 4)
    counts = [three.schedule_count(loader, batch, 14, 1) for batch in range(1, 15)]
    assert [count for count in counts if count is not None] == list(range(1, 11))
    assert three.meant(loader, 1) == (10, 1)
    _, two = adapted(2, 4)
    counts = [two.schedule_count(loader, batch, 20, 2) for batch in range(2, 21, 2)]
    assert counts == list(range(1, 11)), "the global batch is kept"
    assert two.meant(loader, 2) == (10, 1)


def test_numbers_of_batches_mean_the_same_data() -> None:
    trainer, _ = adapted(
        2,
        3,
        limit_train_batches=7,
        limit_val_batches=0.5,
        limit_test_batches=0,
        val_check_interval=3,
    )
    limits = (
        trainer.limit_train_batches,
        trainer.limit_val_batches,
        trainer.limit_test_batches,
        trainer.val_check_interval,
    )
    assert limits == (11, 0.5, 0, 5)
    trainer, _ = adapted(1, 2, fast_dev_run=3)
    assert (trainer.limit_train_batches, trainer.accumulate_grad_batches) == (3, 1)


@pytest.mark.parametrize("at", ["idle", "epoch", "epoch start", "batch"])
def test_batches_are_counted_as_these_workers_would_have(at: Any) -> None:
    progress = Progress(epoch=2, batch=12, total_batches=24, steps=24, at=at)
    before = ElasticPlan(1, 2).go_on(progress, 2, [{}, {}])
    assert (progress.batch, progress.total_batches, progress.steps) == (24, 48, 24)
    assert before == (12 if at == "batch" else None)
