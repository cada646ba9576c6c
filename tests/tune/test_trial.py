from __future__ import annotations

from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.loggers.mlflow.store import PARENT_TAG
from raylit.testing import TinyModel
from raylit.tune.trial import Made, Recipe, TrialFit, TrialPlan


def plan(folder: Path, recipe: Recipe, **settings: Any) -> TrialPlan:
    given: dict[str, Any] = {
        "parent": None,
        "metrics": {"val_loss": "min"},
        "seed": 0,
        "seeds_trials": False,
        "ended": None,
        "max_failures": 0,
        "stop_key": b"",
    }
    return TrialPlan(recipe=recipe, folder=str(folder), **(given | settings))


def test_a_trial_whose_end_cannot_be_written_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(values: dict[str, object]) -> Any:
        raise ArithmeticError("of the user")

    def end(how: str) -> None:
        raise OSError(28, "No space left on device")

    fit = TrialFit(plan(tmp_path, recipe), "trial-000", {}, None, copy_context())
    monkeypatch.setattr(fit.reporter, "end", end)
    fit._run()
    assert fit.reporter.reports.get_nowait() is None, "the sweep waits for this"
    assert fit.how == "failed" and isinstance(fit.error, ArithmeticError)


class Dies(pl.Callback):
    """Ends the fit where a process can be killed: its run is there, and nowhere written down."""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        raise SystemExit


@pytest.mark.parametrize("again", [{"ended": {}}, {"max_failures": 1}])
def test_a_trial_begun_again_goes_on_with_the_run_that_it_made(
    again: dict[str, Any], tmp_path: Path
) -> None:
    parent = pl.MLFlowLogger("lines", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    parent.open(default_root_dir=str(tmp_path), tags={})
    callbacks: list[pl.Callback] = [Dies()]

    def recipe(values: dict[str, object]) -> Made:
        trainer = pl.Trainer(
            fast_dev_run=True, logger=parent, default_root_dir=tmp_path, callbacks=callbacks
        )
        return Made(trainer, TinyModel())

    for name in ("trial-000", "trial-001"):
        made = plan(tmp_path, recipe, parent=parent, **again)
        first = TrialFit(made, name, {}, None, copy_context())
        first._run()
        assert isinstance(first.error, SystemExit) and first.reporter.run_id is None
    callbacks.clear()
    second = TrialFit(made, "trial-000", {}, None, copy_context())
    second.reporter.stop("end")  # at its first report
    second._run()
    runs = parent.experiment.search_runs([str(parent.experiment_id)])
    children = {run.info.run_id: run.info.run_name for run in runs if PARENT_TAG in run.data.tags}
    assert sorted(children.values()) == ["trial-000", "trial-001"]
    assert children[str(second.reporter.run_id)] == "trial-000"
