"""What is seen of a sweep, in 80 columns and without a terminal."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raylit.tune import SweepResult, SweepSpec, display
from raylit.tune.display import SweepDisplay, print_table
from raylit.tune.record import SweepRecord
from raylit.tune.result import TrialResult
from raylit.tune.sweep import _why_all_failed
from tests.deadlines import stretched

ERROR = "ValueError: no such head in this model, which is said at length, and then some more"


@pytest.fixture
def spec() -> SweepSpec:
    space = {
        "model.lr": {"uniform": [0, 1]},
        "data.batch_size": {"choice": [16, 32]},
        "trainer.gradient_clip_val": {"choice": [None, 1.0]},
        "model.dropout": {"uniform": [0, 1]},
    }
    return SweepSpec(space=space, metric="val_acc", mode="max", num_samples=9)


@pytest.fixture
def trials() -> list[TrialResult]:
    found: list[TrialResult] = []
    for number in range(6):
        config = {
            "model.lr": 0.123456 + number / 10,
            "data.batch_size": (16, 32)[number % 2],
            "trainer.gradient_clip_val": None,
            "model.dropout": 0.0123 * number,
        }
        score = 0.5 + number / 100
        metrics = {"val_acc": score}
        found.append(
            TrialResult(
                f"trial-{number:03d}", config, "finished", score, metrics, metrics, iterations=3
            )
        )
    found.append(TrialResult("trial-006", {"model.lr": 0.5}, "failed", error=ERROR))
    return found


def test_the_live_table_has_room_for_numbers(
    spec: SweepSpec, trials: list[TrialResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    record = SweepRecord(str(tmp_path), spec)
    live = SweepDisplay(spec, record, max_reports=9, budget_s=600)
    for trial in trials:
        record.trials[trial.name] = trial
        live.changed(trial, "end" if trial.number > 2 else "report")
        if trial.number <= 2:
            trial.status = "running"
    out = io.StringIO()
    Console(file=out, width=80).print(live._table())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("trial-002" in line and "3/9" in line and "0.52" in line for line in lines), lines
    assert any("trial-006 failed" in line and "no such head" in line for line in lines), lines


def test_the_closing_table_keeps_numbers_and_errors_in_a_line(
    spec: SweepSpec,
    trials: list[TrialResult],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_table(SweepResult(spec, trials))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("trial-003" in line and "0.53" in line and "finished" in line for line in lines)
    assert sum("trial-006 failed: ValueError: no such head" in line for line in lines) == 1
    assert lines[-1].startswith("importance for val_acc: ") and "%" in lines[-1]


def test_without_a_terminal_something_is_said_though_no_trial_reports(
    spec: SweepSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(display, "SAY_EVERY_S", 0.1)
    with SweepDisplay(spec, SweepRecord(str(tmp_path), spec)):
        deadline = time.monotonic() + stretched(10)
        said = ""
        while said.count("0 running") < 2:
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
            said += capsys.readouterr().err


@pytest.mark.parametrize("stop", [{}, {"time_budget": "1s"}])
def test_a_budget_that_ended_before_a_value_is_named(stop: dict[str, Any]) -> None:
    spec = SweepSpec({"model.lr": [0.1, 0.2]}, metric="val_acc", search="grid", stop=stop)
    said = _why_all_failed(SweepResult(spec, []))
    assert "reported 'val_acc'" in said and ("time budget" in said) == bool(stop)
