from __future__ import annotations

from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

from raylit.tune.trial import TrialFit, TrialPlan


def test_a_trial_whose_end_cannot_be_written_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(values: dict[str, object]) -> Any:
        raise ArithmeticError("of the user")

    def end(how: str) -> None:
        raise OSError(28, "No space left on device")

    plan = TrialPlan(
        recipe=recipe,
        parent=None,
        folder=str(tmp_path),
        metrics={"val_loss": "min"},
        seed=0,
        seeds_trials=False,
        ended=None,
        max_failures=0,
        stop_key=b"",
    )
    fit = TrialFit(plan, "trial-000", {}, None, copy_context())
    monkeypatch.setattr(fit.reporter, "end", end)
    fit._run()
    assert fit.reporter.reports.get_nowait() is None, "the sweep waits for this"
    assert fit.how == "failed" and isinstance(fit.error, ArithmeticError)
