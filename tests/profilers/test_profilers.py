from __future__ import annotations

import copy
import dis
import json
import pickle
import pstats
from collections import Counter
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.engine import loop
from raylit.errors import ConfigError
from raylit.profilers import (
    AdvancedProfiler,
    PassThroughProfiler,
    Profiler,
    PyTorchProfiler,
    SimpleProfiler,
)
from raylit.runtime import messages
from raylit.testing.modules import TinyModel
from tests import quiet
from tests.ranks import run_on_two_ranks

trainer = partial(quiet.trainer, max_epochs=2)


class Listing(Profiler):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def start(self, action_name: str) -> None:
        self.seen.append(("start", action_name))

    def stop(self, action_name: str) -> None:
        self.seen.append(("stop", action_name))

    def summary(self) -> str:
        self.seen.append(("summary", str(self._stage)))
        return ""


def test_without_a_profiler_nothing_is_wrapped(tmp_path: Path) -> None:
    class Watch(pl.Callback):
        def on_train_batch_start(
            self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
        ) -> None:
            run = trainer._run
            found.append(
                (
                    type(run).__name__,
                    run.timed("", loop.train_batch) is loop.train_batch,
                    run.watch,
                    dict(vars(pl_module)),
                )
            )
            found.append(
                [function.func.__self__ is self for function in run.hooks["on_train_batch_start"]]
            )

    found: list[Any] = []
    one = trainer(tmp_path, callbacks=Watch(), max_epochs=1)
    assert isinstance(one.profiler, PassThroughProfiler)
    one.fit(TinyModel())
    assert found[0][:3] == ("Run", True, None)
    assert "training_step" not in found[0][3]
    assert found[1] == [True]


def test_the_loop_does_not_know_of_profilers() -> None:
    for function in (loop.train_batch, loop.step_with_closure, loop.train_epoch):
        named = {str(instruction.argval) for instruction in dis.get_instructions(function)}
        assert not {"profiler", "profile", "start", "stop"} & named


def test_actions_lie_within_one_another_and_all_end(tmp_path: Path) -> None:
    profiler = Listing()
    one = trainer(tmp_path, profiler=profiler, limit_train_batches=2, limit_val_batches=1)
    model = TinyModel()
    one.fit(model)
    open_actions: list[str] = []
    for what, action in profiler.seen:
        if what == "start":
            open_actions.append(action)
        elif what == "stop":
            assert open_actions.pop() == action
    assert open_actions == []
    assert profiler.seen[-1] == ("summary", "fit")
    step = profiler.seen.index(("start", "[Strategy]SingleDeviceStrategy.training_step"))
    outer = [
        "run_training_epoch",
        "run_training_batch",
        "[LightningModule]TinyModel.optimizer_step",
    ]
    begun = [action for what, action in profiler.seen[:step] if what == "start"]
    assert [action for action in begun if action in outer] == outer


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    class Own(TinyModel):
        def on_train_start(self) -> None:
            copies.append(pickle.loads(pickle.dumps(copy.deepcopy(self.training_step))))

    copies: list[Any] = []
    model = Own()
    globals()["Own"] = Own
    Own.__qualname__ = "Own"
    before = set(vars(model))
    own_step = model.validation_step
    model.validation_step = own_step  # type: ignore[method-assign]
    trainer(tmp_path, profiler="advanced").fit(model)
    assert set(vars(model)) == before | {"validation_step"}
    assert vars(model)["validation_step"] is own_step
    assert type(copies[0].__self__) is Own  # what was copied is the method, not what measures it


def test_a_run_that_fails_is_reported_too(tmp_path: Path) -> None:
    class Fails(TinyModel):
        def on_train_epoch_end(self) -> None:
            raise OverflowError

    profiler = SimpleProfiler(tmp_path / "out", "report")
    model = Fails()
    with pytest.raises(OverflowError):
        trainer(tmp_path, profiler=profiler).fit(model)
    assert profiler.current_actions == {}
    assert "SingleDeviceStrategy.training_step" in (tmp_path / "out" / "fit-report.txt").read_text()
    assert "training_step" not in vars(model)


def test_the_report_goes_to_the_log_without_a_filename(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    messages.log.addHandler(caplog.handler)
    one = trainer(tmp_path, profiler="Simple", max_epochs=1)
    one.fit(TinyModel())
    messages.log.removeHandler(caplog.handler)
    assert any(
        "FIT Profiler Report" in message and "run_training_batch" in message
        for message in caplog.messages
    )
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_costs_the_report_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="SimpleProfiler could not write its report"):
        result = trainer(
            tmp_path, profiler=SimpleProfiler(tmp_path / "file" / "x", "report"), max_epochs=1
        ).fit(TinyModel())
    assert result.epochs == 1


def test_advanced_sees_what_comes_after_an_inner_action(tmp_path: Path) -> None:
    def before() -> None: ...

    def within() -> None: ...

    def after() -> None: ...

    profiler = AdvancedProfiler(tmp_path, dump_stats=True)
    with profiler.profile("outer"):
        before()
        with profiler.profile("inner"):
            within()
        after()
    report = profiler.summary()
    outer, inner = (
        pstats.Stats(str(tmp_path / f"{name}.prof")).stats for name in ("outer", "inner")
    )  # type: ignore[attr-defined]
    assert {name for _, _, name in outer} >= {"before", "after"}
    assert "within" in {name for _, _, name in inner} - {name for _, _, name in outer}
    assert "Profile stats for: outer" in report


def test_advanced_restricts_its_lines() -> None:
    lengths = []
    for lines in (1, 1.0):
        profiler = AdvancedProfiler(line_count_restriction=lines)
        with profiler.profile("a"):
            sorted([3, 2, 1], key=lambda value: value)
        lengths.append(len(profiler.summary().splitlines()))
    assert lengths[0] < lengths[1]


def test_advanced_dumps_nowhere() -> None:
    profiler = AdvancedProfiler(dump_stats=True)
    with profiler.profile("a"):
        pass
    with pytest.raises(ConfigError, match=r"dirpath=..."):
        profiler.summary()


@pytest.mark.parametrize("kind", [SimpleProfiler, AdvancedProfiler, PyTorchProfiler])
def test_profilers_travel(tmp_path: Path, kind: Any) -> None:
    profiler = kind(tmp_path / "out", "report")
    for _ in range(2):  # as they are, and after a run
        profiler = pickle.loads(pickle.dumps(profiler))
        trainer(tmp_path, profiler=profiler, max_epochs=1, limit_train_batches=2).fit(TinyModel())
    assert (profiler.dirpath, profiler.filename) == (tmp_path / "out", "report")
    assert (tmp_path / "out" / "fit-report.txt").read_text().count("FIT Profiler Report") == 2


def test_the_sanity_check_does_not_use_up_the_schedule(tmp_path: Path) -> None:
    schedule = torch.profiler.schedule(wait=1, warmup=0, active=2)
    one = trainer(
        tmp_path,
        profiler=PyTorchProfiler(tmp_path / "traces", schedule=schedule),
        max_epochs=1,
        num_sanity_val_steps=4,
    )
    one.fit(TinyModel())
    (training,) = (tmp_path / "traces").glob("*training_step*.json")
    names = Counter(
        event["name"]
        for event in json.loads(training.read_text())["traceEvents"]
        if event.get("cat") == "user_annotation"
    )
    assert names["[pl][profile][Strategy]SingleDeviceStrategy.training_step"] == 2
    assert not any("validation_step" in name for name in names)


def test_few_steps_are_all_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiler = PyTorchProfiler(
        tmp_path / "traces",
        "report",
        record_shapes=True,
        group_by_input_shapes=True,
        sort_by_key="count",
        row_limit=3,
    )
    with pytest.warns(UserWarning, match="fewer steps than its default schedule"):
        trainer(tmp_path, profiler=profiler, fast_dev_run=True).fit(TinyModel())
    assert profiler.function_events
    assert "Input Shapes" in (tmp_path / "traces" / "fit-report.txt").read_text()
    assert list((tmp_path / "traces").glob("*.json"))


def test_no_folder_for_traces() -> None:
    """A profiler that no Trainer has been given, used by hand."""
    profiler = PyTorchProfiler(schedule=torch.profiler.schedule(wait=0, warmup=0, active=1))
    with pytest.warns(UserWarning, match="PyTorchProfiler has no folder"):
        for _ in range(2):
            with profiler.profile("training_step"):
                torch.ones(2).sum()
        profiler.teardown("fit")


def test_a_schedule_that_records_no_step_costs_the_report_only(tmp_path: Path) -> None:
    class Fails(TinyModel):
        def on_fit_start(self) -> None:
            raise OverflowError

    schedule = torch.profiler.schedule(wait=100, warmup=1, active=1)
    for model, error in ((TinyModel(), nullcontext()), (Fails(), pytest.raises(OverflowError))):
        profiler = PyTorchProfiler(tmp_path / "traces", "report", schedule=schedule)
        with pytest.warns(UserWarning, match="PyTorchProfiler has recorded nothing"), error:
            trainer(tmp_path, profiler=profiler, max_epochs=1).fit(model)
        assert profiler.function_events is None
    assert not (tmp_path / "traces" / "fit-report.txt").read_text()


def test_flame_graph(tmp_path: Path) -> None:
    profiler = PyTorchProfiler(
        tmp_path / "t",
        schedule=torch.profiler.schedule(wait=0, warmup=0, active=1),
        export_to_flame_graph=True,
        export_to_chrome=False,
    )
    trainer(tmp_path, profiler=profiler, max_epochs=1).fit(TinyModel())
    assert [path.suffix for path in (tmp_path / "t").iterdir() if "training" in path.name] == [
        ".stack"
    ]


def test_unknown_arguments() -> None:
    with pytest.raises(ConfigError, match=r"profile_memry=.*Did you mean 'profile_memory'"):
        PyTorchProfiler(profile_memry=True)
    with pytest.raises(ConfigError, match=r"profiler='advancd'.*Did you mean 'advanced'"):
        pl.Trainer(profiler="advancd", max_epochs=1)


def profile_on_two(folder: str) -> Any:
    profiler = SimpleProfiler(f"{folder}/out", "times")
    one = trainer(
        folder, profiler=profiler, max_epochs=1, gradient_clip_val=0.1, accumulate_grad_batches=2
    )
    torch.manual_seed(0)
    model = TinyModel()
    one.fit(model)
    torch.manual_seed(0)
    other = TinyModel()
    trainer(folder, max_epochs=1, gradient_clip_val=0.1, accumulate_grad_batches=2).fit(other)
    same = all(
        torch.equal(one, two)
        for one, two in zip(model.parameters(), other.parameters(), strict=True)
    )
    return same, len(profiler.recorded_durations["[Strategy]DDPStrategy.training_step"])


def test_each_rank_reports(tmp_path: Path) -> None:
    ranks = run_on_two_ranks(profile_on_two, tmp_path)
    assert [same for same, _ in ranks] == [True, True]
    assert min(steps for _, steps in ranks) > 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "fit-times-0.txt",
        "fit-times-1.txt",
    ]
