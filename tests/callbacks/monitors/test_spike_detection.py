from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.callbacks import Callback, SpikeDetection
from raylit.errors import ConfigError, TrainingSpikeException
from raylit.testing import RandomDataset, TinyModel
from tests.lazy import lightning
from tests.quiet import BARE
from tests.ranks import run_on_two_ranks


class Scripted(TinyModel):
    """Has a loss of 1, but where `jumps` says otherwise: by epoch, batch and rank."""

    def __init__(self, *jumps: tuple[int, int, int]) -> None:
        super().__init__()
        self.jumps = jumps

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        here = (self.current_epoch, batch_idx, self.trainer.global_rank)
        return sum(one.sum() for one in self.parameters()) * 0 + (
            50.0 if here in self.jumps else 1.0 + 0.01 * batch_idx
        )


def fit(
    folder: Path | str,
    detection: Any,
    *jumps: tuple[int, int, int],
    batches: int = 40,
    ckpt_path: Any = None,
    more: Any = (),
    kind: type[Scripted] = Scripted,
) -> pl.Trainer:
    trainer = pl.Trainer(
        **BARE,
        callbacks=[detection, *more],
        max_epochs=2,
        default_root_dir=folder,
    )
    data: Any = RandomDataset(32, batches)
    trainer.fit(kind(*jumps), torch.utils.data.DataLoader(data), ckpt_path=ckpt_path)
    return trainer


def test_arguments() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (SpikeDetection, lightning.pytorch.callbacks.SpikeDetection)
    )
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values()
    ]
    with pytest.raises(ConfigError, match="mode='low'"):
        SpikeDetection("low")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="window=0"):
        SpikeDetection(window=0)


def test_alone_on_the_cpu_it_ends_at_once(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watch(Callback):
        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            seen.append(batch_idx)

    with pytest.raises(TrainingSpikeException, match="batch 21"):
        fit(tmp_path, SpikeDetection(), (0, 21, 0), more=[Watch()])
    assert seen[-1] == 21
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [20, 21]


def test_a_loss_that_is_no_tensor(tmp_path: Path) -> None:
    detection = SpikeDetection()
    trainer = fit(tmp_path, detection, batches=2)
    with pytest.raises(TypeError, match="gave float"):
        detection.on_train_batch_end(trainer, TinyModel(), {"loss": 1.0}, None, 0)


@pytest.mark.parametrize("batches", [1, 39, 45])
def test_a_fit_that_goes_on_remembers_the_mean(tmp_path: Path, batches: int) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.progress.total_batches == batches:
                trainer.save_checkpoint(tmp_path / "one.ckpt")

    whole, again = SpikeDetection(window=20), SpikeDetection(window=20)
    fit(tmp_path, whole, more=[Saves()])
    fit(tmp_path, again, ckpt_path=tmp_path / "one.ckpt")
    assert again.state_dict() == whole.state_dict()
    assert len(whole.state_dict()["values"]) == 20


class LeavesOut(Scripted):
    """Leaves out the first three batches of rank 0, as manual optimization may."""

    def __init__(self, *jumps: tuple[int, int, int]) -> None:
        super().__init__(*jumps)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank == 0 and batch_idx < 3:
            return None
        return super().training_step(batch, batch_idx)


def leave_out(folder: str) -> Any:
    detection = SpikeDetection()
    with pytest.raises(TrainingSpikeException) as raised:
        fit(folder, detection, (0, 10, 0), kind=LeavesOut)
    return raised.value.batch_idx, detection.bad_batches


def test_ranks_that_leave_out_other_batches_judge_the_same(tmp_path: Path) -> None:
    assert run_on_two_ranks(leave_out, tmp_path) == [(10, [9, 10])] * 2


class NotAlone(SpikeDetection):
    """Judges as on several ranks, and says when."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.judged: list[int] = []

    def _judge_pending(self, trainer: Any) -> None:
        self.judged.append(len(self._pending))
        super()._judge_pending(trainer)


def main(folder: str) -> Any:
    found: list[Any] = []
    for name, jumps in {
        "none": (),
        "one": [(0, 5, 1)],  # of the 20 batches that each rank has
        "first": [(0, 9, 0), (0, 7, 1)],
        "last": [(0, 18, 0)],
        "second-epoch": [(1, 17, 1)],
    }.items():
        detection, seen = NotAlone(), -1

        class Watch(Callback):
            def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
                nonlocal seen
                seen = trainer.progress.total_batches

        try:
            fit(f"{folder}/{name}", detection, *jumps, more=[Watch()])
            found.append(("ended", detection.judged))
        except TrainingSpikeException as error:
            found.append((error.batch_idx, seen, detection.bad_batches))
    return found


def test_a_spike_on_one_rank_ends_both_at_the_same_batch(tmp_path: Path) -> None:
    zero, one = run_on_two_ranks(main, tmp_path)
    assert zero == one
    assert zero == [
        ("ended", [16, 4, 16, 4]),
        (5, 16, [4, 5]),
        (7, 16, [6, 7]),
        (18, 20, [17, 18]),
        (17, 40, [16, 17]),
    ]
    assert json.loads((tmp_path / "first" / "skip_batches.json").read_text()) == [6, 7]
    assert not (tmp_path / "none" / "skip_batches.json").exists()


def test_losses_not_judged_yet_are_in_the_checkpoint() -> None:
    detection, again = SpikeDetection(), SpikeDetection()
    detection._pending = [(3, torch.tensor(1.5)), (4, torch.tensor(2.5))]
    again.load_state_dict(detection.state_dict())
    assert [(number, float(loss)) for number, loss in again._pending] == [(3, 1.5), (4, 2.5)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_in_warmup_blinds_nothing(bad: float) -> None:
    detection = SpikeDetection(warmup=3, window=10, rtol=2.0)
    losses = [1.0, bad, 1.1, 1.0, 0.9, 20.0]
    assert [detection._is_spike(batch, loss) for batch, loss in enumerate(losses)] == [
        *[False] * 5,
        True,
    ]
    gone_on = SpikeDetection(warmup=3)
    gone_on.load_state_dict({**detection.state_dict(), "values": [1.0, bad], "last_val": bad})
    assert gone_on._is_spike(7, 20.0)
