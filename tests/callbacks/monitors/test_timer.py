from __future__ import annotations

import inspect
import pickle
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import raylit as pl
from raylit.callbacks import Callback, ModelCheckpoint, Timer
from raylit.callbacks.monitors.timer import SharedDeadline, parse_duration
from raylit.errors import ConfigError
from tests.callbacks.both import batches, both, scripted
from tests.deadlines import stretched
from tests.lazy import lightning
from tests.quiet import BARE, UNLOGGED


class Slow(Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(0.02)


def fit(callbacks: Any, ckpt_path: Any = None, **trainer: Any) -> pl.Trainer:
    done = pl.Trainer(
        **{**UNLOGGED, "callbacks": callbacks, "enable_checkpointing": False, **trainer}
    )
    done.fit(scripted(pl, [0.5] * 99), batches(), batches(2), ckpt_path=ckpt_path)
    return done


@pytest.mark.parametrize(
    "duration",
    ["00:00:00:05", " 01:02:03:04 ", {"minutes": 2}, timedelta(seconds=1.5), None],
    ids=str,
)
def test_durations_are_those_of_lightning(duration: Any) -> None:
    assert Timer(duration)._duration == lightning.pytorch.callbacks.Timer(duration)._duration


@pytest.mark.parametrize("duration", ["5", "1:2:3:4", "00:00:00", 5, {"fortnights": 1}], ids=str)
def test_durations_that_are_none(duration: Any) -> None:
    with pytest.raises(ConfigError, match="duration"):
        Timer(duration)


def test_arguments() -> None:
    ours, theirs = (
        inspect.signature(kind.__init__).parameters
        for kind in (Timer, lightning.pytorch.callbacks.Timer)
    )
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values()
    ]
    with pytest.raises(ConfigError, match="interval='batch'"):
        Timer(interval="batch")
    with pytest.raises(ConfigError, match="Did you mean 'train'"):
        Timer().time_elapsed("training")
    assert parse_duration("00:12:00:00") == timedelta(hours=12)


def test_it_stops_after_the_batch_in_which_the_time_was_up() -> None:
    timer = Timer(timedelta(seconds=0.1))
    trainer = fit([timer, Slow()], max_epochs=-1)
    assert 1 <= trainer.global_step <= 6  # five batches sleep for 0.1 s, on a busy machine fewer
    assert 0.1 <= timer.time_elapsed() < stretched(0.3)
    remaining = timer.time_remaining()
    assert remaining is not None
    assert remaining <= 0


def test_it_stops_at_the_end_of_an_epoch() -> None:
    timer = Timer(timedelta(seconds=0.1), interval="epoch")
    # a busy machine needs more than 0.1 s for the first epoch of four batches, none less for three
    assert fit([timer, Slow()], max_epochs=-1).global_step in (4, 8)


def test_max_time_of_the_trainer() -> None:
    trainer = fit([Slow()], max_time={"milliseconds": 100})
    assert 1 <= trainer.global_step <= 6  # five batches sleep for 0.1 s, on a busy machine fewer


def test_the_stages_are_timed(tmp_path: Path) -> None:
    def scenario(framework: Any, root: Path) -> dict[str, Any]:
        timer = framework.callbacks.Timer()
        trainer = framework.Trainer(**BARE, max_epochs=1, callbacks=timer)
        assert timer.time_elapsed() == 0
        assert timer.time_remaining() is None
        model = scripted(framework, [0.5] * 9)
        trainer.fit(model, batches(), batches(2))
        trainer.validate(model, batches(2), verbose=False)
        known = {}
        for stage in ("train", "sanity_check", "validate", "test", "predict"):
            start, end = timer.start_time(stage), timer.end_time(stage)
            known[stage] = (start is not None, end is not None)
            if start is not None:
                assert 0 < timer.time_elapsed(stage) < 1
        return {
            "known": known,
            "state": sorted(timer.state_dict()["time_elapsed"]),
            "key": timer.state_key,
        }

    ours, theirs = both(scenario, tmp_path)
    assert ours == theirs


def test_what_was_spent_counts_after_a_resumption(tmp_path: Path) -> None:
    fit([Timer(), Slow(), ModelCheckpoint(tmp_path)], enable_checkpointing=True, max_epochs=2)
    timer = Timer(timedelta(seconds=0.1))
    trainer = fit([timer, Slow()], max_epochs=-1, ckpt_path=next(tmp_path.iterdir()))
    assert trainer.global_step == 8, "it was up already"
    assert timer.time_elapsed() >= 0.16
    copy = Timer()
    copy.__dict__.update(pickle.loads(pickle.dumps(timer.__getstate__())))
    assert copy.time_elapsed() == timer.time_elapsed()


def test_a_timer_that_is_resumed_in_its_process_counts_its_time_once(tmp_path: Path) -> None:
    timer = Timer(timedelta(minutes=9))
    saver = ModelCheckpoint(tmp_path)
    fit([timer, Slow(), saver], enable_checkpointing=True, max_epochs=2)
    spent_s = timer.time_elapsed()
    timer.load_state_dict(timer.state_dict())
    assert timer.time_elapsed() == pytest.approx(spent_s)


def test_what_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import logging

    logging.getLogger("raylit").addHandler(caplog.handler)
    try:
        fit([Timer(timedelta(0))], max_epochs=3)
        fit([Timer(timedelta(0), verbose=False)], max_epochs=3)
    finally:
        logging.getLogger("raylit").removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records if "Time limit" in record.getMessage()]
    assert said == ["Time limit reached. Elapsed time is 0:00:00. Signaling Trainer to stop."]


def test_ranks_find_the_same_batch_with_few_questions() -> None:
    """Two ranks whose clocks differ.

    Rank 0's counts, and it is asked less than once in ten batches.
    """
    for limit_s, batch_s in ((10.0, 0.01), (1.0, 0.3), (100.0, 0.05)):
        answers: list[Any] = []
        clock = {"now": 0.0}
        asked = 0

        def broadcast_from_zero(value: Any, answers: list[Any] = answers) -> Any:
            answers.append(value)
            return value

        def broadcast_to_other(value: Any, answers: list[Any] = answers) -> Any:
            return answers[-1]

        zero: Any = SimpleNamespace(size=2, broadcast_object=broadcast_from_zero)
        other: Any = SimpleNamespace(size=2, broadcast_object=broadcast_to_other)
        one, two = SharedDeadline(), SharedDeadline()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(time, "monotonic", lambda clock=clock: clock["now"])
            batch = 0
            while True:
                batch += 1
                clock["now"] += batch_s
                up = one.is_reached(zero, limit_s - clock["now"])
                assert two.is_reached(other, limit_s - clock["now"] + 3) is up
                if up:
                    break
        asked = len(answers)
        assert limit_s <= clock["now"] <= limit_s + 2 * batch_s
        assert asked <= max(batch / 10, 12)
