from __future__ import annotations

import math
import os
import pickle
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import raylit as pl
from raylit.errors import ConfigError
from raylit.loggers import Logger, MLFlowLogger
from raylit.testing import TinyModel
from raylit.testing.loggers import LoggerConformance, log_in_another_process
from tests.deadlines import stretched
from tests.lazy import mlflow
from tests.loggers.mlflow_store import artifacts, history, opened, run_of


class TestConformance(LoggerConformance):
    @pytest.fixture
    def make(self, uri: str, tmp_path: Path) -> Callable[[], Logger]:
        return lambda: MLFlowLogger("conformance", tracking_uri=uri)

    def history(self, logger: Logger) -> list[tuple[str, int, float]]:
        assert isinstance(logger, MLFlowLogger)
        return [
            (key, *point) for key in run_of(logger).data.metrics for point in history(logger, key)
        ]

    def hyperparams(self, logger: Logger) -> Mapping[str, Any] | None:
        assert isinstance(logger, MLFlowLogger)
        return dict(run_of(logger).data.params)

    def status(self, logger: Logger) -> str | None:
        assert isinstance(logger, MLFlowLogger)
        return str(run_of(logger).info.status)


def test_a_run_knows_who_where_and_what(uri: str, tmp_path: Path) -> None:
    logger = opened(
        MLFlowLogger(run_name="first", tracking_uri=uri, tags={"team": "blue", "n": 3}),
        tmp_path,
        **{"raylit.version": "0.1"},
    )
    run = run_of(logger)
    assert run.info.run_name == "first"
    assert run.info.status == "RUNNING"
    assert (
        (run.info.experiment_id, run.info.run_id)
        == (logger.name, logger.version)
        == (logger.experiment_id, logger.run_id)
    )
    assert run.data.tags.items() >= {"team": "blue", "n": "3", "raylit.version": "0.1"}.items()
    assert run.data.tags.keys() >= {"mlflow.user", "mlflow.source.name"}
    logger.close("killed")
    assert run_of(logger).info.status == "KILLED"
    assert run_of(logger).info.end_time


def test_an_announced_end_is_there_without_close(uri: str, tmp_path: Path) -> None:
    """And without another process, for which `ray job stop` leaves no time."""
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.announce("killed")
    deadline = time.monotonic() + stretched(2)
    while run_of(logger).info.status != "KILLED":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert logger._live.sender is not None and not logger._live.sender.is_started
    logger.close("success")
    assert run_of(logger).info.status == "FINISHED"


def test_metrics_are_those_that_lightning_records(uri: str, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger

    ours = MLFlowLogger("theirs", tracking_uri=uri, prefix="p")
    theirs: Any = LightningMLFlowLogger("theirs", tracking_uri=uri, prefix="p")
    for logger in (ours, theirs):
        logger.log_hyperparams({"lr": 0.1, "layers": [1, 2], "none": None, "flag": True})
        for step in range(3):
            logger.log_metrics({"train/loss": 0.1 * step, "acc (top@5)": 1, "epoch": 0}, step)
        values: Any = {"text": "no number", "no_step": 2.5}
        logger.log_metrics(values)
        logger.finalize("success")
    our_run, their_run = run_of(ours), run_of(theirs)
    assert our_run.data.params == their_run.data.params
    assert our_run.data.metrics.keys() == their_run.data.metrics.keys()
    for key in our_run.data.metrics:
        assert sorted(history(ours, key)) == sorted(history(theirs, key))
    assert our_run.info.status == their_run.info.status == "FINISHED"


def test_nested_hyperparameters_have_dots_where_lightning_has_slashes(
    uri: str, tmp_path: Path
) -> None:
    from lightning.pytorch.loggers import MLFlowLogger as LightningMLFlowLogger

    def names(logger: Any) -> list[str]:
        logger.log_hyperparams({"model": {"lr": 0.1}})
        logger.finalize("success")
        return list(run_of(logger).data.params)

    assert names(LightningMLFlowLogger("nested", tracking_uri=uri)) == ["model/lr"]
    assert names(MLFlowLogger("nested", tracking_uri=uri)) == ["model.lr"]


def test_nan_and_infinity(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_metrics({"nan": math.nan, "inf": math.inf}, 1)
    logger.finalize("success")
    assert math.isnan(history(logger, "nan")[0][1])
    assert history(logger, "inf")[0][1] > 1e308
    logger.close("success")


def test_names_are_made_fit(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_metrics(
        {"/a//b/../c/": 1.0, "": 2.0, "x" * 300 + "1": 3.0, "x" * 300 + "2": 4.0, "val:acc é": 5.0},
        0,
    )
    logger.log_hyperparams({"a=b?": 1, "../up": 2})
    logger.finalize("success")
    metrics = run_of(logger).data.metrics
    assert sorted(metrics.values()) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert metrics.items() >= {"a/b/c": 1.0, "_": 2.0, "val:acc é": 5.0}.items()
    assert run_of(logger).data.params == {"ab": "1", "up": "2"}
    logger.close("success")


def test_many_and_long_hyperparameters(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_hyperparams(
        {"group": {f"p{number}": number for number in range(250)}, "long": "x" * 7000}
    )
    logger.finalize("success")
    params = run_of(logger).data.params
    assert len(params) == 251
    assert params["group.p249"] == "249"
    assert len(params["long"]) == 6000
    logger.close("success")


def test_a_changed_hyperparameter_becomes_a_tag(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_hyperparams({"lr": 0.1, "width": 32})
    logger.finalize("failed")
    logger.experiment.log_param(str(logger.run_id), "depth", 2)  # by the user
    logger.log_hyperparams({"lr": 0.2, "width": 32, "depth": 3, "new": 1})
    logger.finalize("success")
    run = run_of(logger)
    assert run.data.params == {"lr": "0.1", "width": "32", "depth": "2", "new": "1"}
    assert {
        key: value for key, value in run.data.tags.items() if key.startswith("raylit.resume")
    } == {
        "raylit.resume.1.lr": "0.2",
        "raylit.resume.1.depth": "3",
    }
    logger.close("success")


def test_the_status_is_set_by_close_alone_once_there_was_a_trainer(
    uri: str, tmp_path: Path
) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.finalize("failed")
    assert run_of(logger).info.status == "RUNNING"  # workers may be started again
    logger.close("success")
    logger.finalize("failed")
    assert run_of(logger).info.status == "FINISHED"


def test_a_given_run_is_continued(uri: str, tmp_path: Path) -> None:
    first = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("success")
    first.close("success")
    again = opened(MLFlowLogger(tracking_uri=uri, run_id=first.run_id), tmp_path, attempt="2")
    assert run_of(again).info.status == "RUNNING"
    # A new training in an old run: nothing of it is taken for a replay
    log_in_another_process(again, [({"loss": 2.0}, 0)])
    again.close("failed")
    assert [value for _, value in sorted(history(again, "loss"))] == [1.0, 2.0]
    assert run_of(first).info.status == "FAILED"
    assert run_of(first).data.tags["attempt"] == "2"


def test_a_run_is_resumed_from_a_checkpoint_with_each_step_once(uri: str, tmp_path: Path) -> None:
    first = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    for step in range(6):  # killed at step 6
        first.log_metrics({"loss": float(step), "epoch": 0.0}, step)
    first.finalize("failed")
    again = MLFlowLogger(tracking_uri=uri)
    assert first.run_id is not None
    again.resume(first.run_id)
    opened(again, tmp_path)
    assert again.run_id == first.run_id
    for step in range(4, 9):  # from the checkpoint of step 4
        again.log_metrics(
            {"loss": float(step), "epoch": 0.0} | ({"val": 1.0} if step == 5 else {}), step
        )
    again.finalize("success")
    again.close("success")
    assert sorted(history(again, "loss")) == [(step, float(step)) for step in range(9)]
    assert history(again, "val") == [(5, 1.0)]


def test_workers_started_again_log_what_begins_anew(uri: str, tmp_path: Path) -> None:
    """As the rates of each validation, which are counted from 1 in each epoch."""
    logger = opened(MLFlowLogger(tracking_uri=uri, monitor=False), tmp_path)

    def works(worker: MLFlowLogger, epochs: range) -> None:
        for epoch in epochs:
            worker.log_metrics({"rate": float(epoch)}, 1)

    first = pickle.loads(pickle.dumps(logger))
    works(first, range(2))
    # of a checkpoint, when all was sent
    state = {"run_id": logger.run_id, "since_ms": int(time.time() * 1000), "tail": b""}
    time.sleep(0.01)
    works(first, range(2, 3))
    first.finalize("failed")
    second = pickle.loads(pickle.dumps(logger))
    second.load_state_dict(state)
    works(second, range(2, 5))
    second.finalize("success")
    logger.close("success")
    assert history(logger, "rate") == [(1, float(epoch)) for epoch in range(5)]


def test_a_fit_that_ended_before_it_was_saved_repeats_its_run(uri: str, tmp_path: Path) -> None:
    """As a trial that was killed before its first checkpoint."""
    first = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    for step in range(3):
        first.log_metrics({"loss": float(step)}, step)
    first.finalize("failed")
    again = MLFlowLogger(tracking_uri=uri)
    again.repeat(str(first.run_id))
    again.start_over()
    opened(again, tmp_path)
    for step in range(5):
        again.log_metrics({"loss": float(step)}, step)
    again.finalize("success")
    again.close("success")
    assert again.run_id == first.run_id and run_of(first).info.status == "FINISHED"
    assert sorted(history(again, "loss")) == [(step, float(step)) for step in range(5)]


def test_a_run_that_cannot_be_repeated_is_followed_by_another(uri: str, tmp_path: Path) -> None:
    first = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    first.close("failed")
    first.experiment.delete_run(first.run_id)
    gone = "0" * 32
    for run_id in (str(first.run_id), gone):
        again = MLFlowLogger(tracking_uri=uri)
        again.repeat(run_id)
        again.start_over()
        if run_id == gone:
            with pytest.warns(UserWarning, match=f"{gone} of before is not in"):
                opened(again, tmp_path)
        else:
            opened(again, tmp_path)
        again.log_metrics({"loss": 1.0}, 0)
        again.close("success")
        assert again.run_id != run_id and history(again, "loss") == [(0, 1.0)]


def test_a_fit_from_a_checkpoint_goes_on_with_its_run(uri: str, tmp_path: Path) -> None:
    def fit(max_epochs: int, ckpt_path: str | None = None) -> pl.Result:
        trainer = pl.Trainer(
            max_epochs=max_epochs,
            logger=MLFlowLogger("resumed", tracking_uri=uri),
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        return trainer.fit(TinyModel(), ckpt_path=ckpt_path)

    first = fit(1)
    second = fit(2, first.last_model_path)
    other = fit(1)
    assert second.run_id == first.run_id != other.run_id
    assert [row["epoch"] for row in second.history] == [0, 1]


def test_values_at_an_x_of_their_own_are_no_further_steps(uri: str, tmp_path: Path) -> None:
    """A run that was tested after its fit has not gone on from its newest checkpoint."""
    prefix = "of: me"
    first = opened(MLFlowLogger(tracking_uri=uri, prefix=prefix), tmp_path)
    for step in range(3):
        first.log_metrics({"loss": 1.0, "epoch": 0.0}, step)
    state = first.state_dict()
    first.finalize("success")
    first.close("success")
    run_id = str(first.run_id)
    time.sleep(0.01)
    for key in ("system/node_0/cpu", f"{prefix}-test/time"):
        first.experiment.log_metric(run_id, key, 1.0, step=60)

    def goes_on(**given: Any) -> bool:
        again = MLFlowLogger(tracking_uri=uri, **given)
        again.resume(run_id)
        again.branch(3, is_newest=True)
        again.load_state_dict(state)
        opened(again, tmp_path).close("success")
        return again.run_id == run_id

    assert goes_on(prefix=prefix)
    first.experiment.log_metric(run_id, f"{prefix}-epoch", 1.0, step=4)
    assert not goes_on(prefix=prefix)


def test_two_evaluations_at_one_step_are_both_kept(uri: str, tmp_path: Path) -> None:
    class Scores(TinyModel):
        score = 0.25

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", self.score)

    trainer = pl.Trainer(
        max_epochs=1,
        logger=MLFlowLogger("twice", tracking_uri=uri),
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Scores()
    trainer.fit(model)
    for model.score in (0.25, 0.5):
        trainer.test(model, verbose=False)
    assert sorted(value for _, value in history(trainer.logger, "score")) == [0.25, 0.5]


def test_a_run_that_was_deleted_is_not_gone_on_with(uri: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(uri)
    gone = opened(MLFlowLogger("deleted", tracking_uri=uri), tmp_path)
    gone.close("success")
    client.delete_run(str(gone.run_id))
    logger = MLFlowLogger("deleted", tracking_uri=uri)
    logger.resume(str(gone.run_id))
    with pytest.warns(UserWarning, match="was deleted, so a new one is created"):
        opened(logger, tmp_path)
    assert logger.run_id != gone.run_id
    logger.close("success")
    with pytest.raises(ConfigError, match=f"mlflow runs restore --run-id {gone.run_id}"):
        opened(MLFlowLogger("deleted", tracking_uri=uri, run_id=gone.run_id), tmp_path)


def test_resuming_a_run_that_is_not_there_creates_one(uri: str, tmp_path: Path) -> None:
    logger = MLFlowLogger(tracking_uri=uri)
    logger.resume("0" * 32)
    with pytest.warns(UserWarning, match="a new one is created"):
        opened(logger, tmp_path)
    assert logger.run_id != "0" * 32
    logger.close("success")


def test_the_active_run_of_the_user_is_used_and_not_ended(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(uri)
    experiment_id = mlflow.MlflowClient(uri).create_experiment("of the user")
    with mlflow.start_run(experiment_id=experiment_id) as active:
        logger = opened(MLFlowLogger(), tmp_path, **{"raylit.version": "0.1"})
        assert (logger.run_id, logger.experiment_id) == (active.info.run_id, experiment_id)
        # A run of its own, although one is active
        child = opened(logger.child("nested", {}), tmp_path)
        assert child.run_id != active.info.run_id
        child.close("success")
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("failed")
        logger.close("failed")
        assert run_of(logger).info.status == "RUNNING"
        elsewhere = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/other.db")
        shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "other.db")
        assert opened(elsewhere, tmp_path).run_id != active.info.run_id
        elsewhere.close("success")
    assert run_of(logger).info.status == "FINISHED"
    assert run_of(logger).data.metrics == {"loss": 1.0}
    second = opened(logger, tmp_path)  # that run is over
    assert second.run_id != active.info.run_id
    second.close("success")
    monkeypatch.setenv("MLFLOW_RUN_ID", active.info.run_id)
    assert opened(MLFlowLogger(), tmp_path).run_id == active.info.run_id
    assert os.environ["MLFLOW_RUN_ID"]


def test_children_are_nested_and_opened_elsewhere(uri: str, tmp_path: Path) -> None:
    parent = opened(MLFlowLogger("sweep", run_name="parent", tracking_uri=uri), tmp_path)
    child: MLFlowLogger = pickle.loads(
        pickle.dumps(parent.child("trial-007", {"raylit.trial_id": "007"}))
    )
    opened(child, tmp_path / "trial", **{"raylit.version": "0.1"})
    log_in_another_process(child, [({"loss": 0.5}, 0)], params={"lr": 0.1})
    child.close("killed")
    parent.close("success")
    run, parent_run = run_of(child), run_of(parent)
    assert run.info.experiment_id == parent_run.info.experiment_id
    assert (run.info.run_name, run.info.status) == ("trial-007", "KILLED")
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.data.tags["raylit.trial_id"] == "007"
    assert run.data.tags["mlflow.source.name"] == parent_run.data.tags["mlflow.source.name"]
    assert (run.data.metrics, run.data.params) == ({"loss": 0.5}, {"lr": "0.1"})


def test_a_deleted_experiment(uri: str, tmp_path: Path) -> None:
    client = mlflow.MlflowClient(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ConfigError, match="mlflow experiments restore"):
        opened(MLFlowLogger("gone", tracking_uri=uri), tmp_path)


def test_a_sibling_is_a_run_of_its_own_in_the_same_place(uri: str, tmp_path: Path) -> None:
    first = opened(
        MLFlowLogger(
            "siblings",
            run_name="one",
            tracking_uri=uri,
            tags={"team": "vision"},
            prefix="p",
            log_model=True,
        ),
        tmp_path,
    )
    second = first.sibling("two")
    assert second._run_id is None
    opened(second, tmp_path)
    second.log_metrics({"loss": 0.5}, 0)
    second.finalize("success")
    first.close("failed")
    second.close("success")
    runs = run_of(first), run_of(second)
    assert [run.info.run_name for run in runs] == ["one", "two"]
    assert [run.info.status for run in runs] == ["FAILED", "FINISHED"]
    assert runs[0].info.experiment_id == runs[1].info.experiment_id
    assert [run.data.tags["team"] for run in runs] == ["vision"] * 2
    assert "mlflow.parentRunId" not in runs[1].data.tags
    assert runs[1].data.metrics == {"p-loss": 0.5}
    assert second._log_model is True


def test_a_sibling_does_not_log_into_the_run_of_the_user(uri: str, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run(
        experiment_id=mlflow.MlflowClient(uri).create_experiment("of the user, too")
    ) as active:
        sibling = opened(MLFlowLogger("siblings of none").sibling("sweep"), tmp_path)
        assert sibling.run_id != active.info.run_id
        assert run_of(sibling).data.tags["mlflow.parentRunId"] == active.info.run_id
        sibling.close("success")
        assert run_of(sibling).info.status == "FINISHED"


def test_children_that_nobody_ended_are_closed(uri: str, tmp_path: Path) -> None:
    parent = opened(MLFlowLogger("sweep", tracking_uri=uri), tmp_path)
    other = opened(MLFlowLogger("sweep", tracking_uri=uri), tmp_path)
    children = [opened(parent.child(f"trial-{number}", {}), tmp_path) for number in range(3)]
    stranger = opened(other.child("trial-0", {}), tmp_path)
    children[0].close("success")
    parent.close_children("killed")
    assert [run_of(child).info.status for child in children] == ["FINISHED", "KILLED", "KILLED"]
    assert [run_of(logger).info.status for logger in (stranger, parent, other)] == ["RUNNING"] * 3
    parent.close_children("success")  # there is none left


def test_texts_become_artifacts(uri: str, tmp_path: Path) -> None:
    logger = opened(MLFlowLogger(tracking_uri=uri), tmp_path)
    logger.log_text("lr: 0.1\n", "config/config.yaml")
    logger.log_text("ü", "note.txt")
    logger.log_text("not out of the folder", "/../other/./note.txt")
    logger.log_metrics({"loss": 0.5}, 0)
    logger.finalize("success")
    logger.close("success")
    assert artifacts(logger) == ["config/config.yaml", "note.txt", "other/note.txt"]
    read = [
        Path(logger.experiment.download_artifacts(str(logger.run_id), path)).read_text("utf-8")
        for path in artifacts(logger)
    ]
    assert read == ["lr: 0.1\n", "ü", "not out of the folder"]
    assert history(logger, "loss") == [(0, 0.5)]


def test_a_sweep_as_the_tuner_does_it(uri: str, tmp_path: Path) -> None:
    """A parent made from the Trainer's logger, a child for each trial, one killed in the middle.

    Each trial is fitted by a Trainer.
    """
    parent = opened(MLFlowLogger("fits", tracking_uri=uri).sibling("sweep-1"), tmp_path)
    for number in range(2):
        child = pickle.loads(pickle.dumps(parent)).child(
            f"trial-{number}", {"raylit.trial": str(number)}
        )
        settings: Any = {
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        }
        trainer = pl.Trainer(max_epochs=1, logger=child, default_root_dir=tmp_path, **settings)
        result = trainer.fit(TinyModel())
        run = run_of(child)
        assert result.run_id == child.run_id
        assert (run.info.run_name, run.info.status) == (f"trial-{number}", "FINISHED")
        assert run.data.tags["mlflow.parentRunId"] == parent.run_id
        assert [step for step, _ in history(child, "train_loss")] == [0, 1, 2, 3]
        assert [step for step, _ in history(child, "val_loss")] == [3]
        assert run.data.params.items() >= {"batch_size": "4", "trainer.max_epochs": "1"}.items()
        assert run.data.params["optimizer.name"] == "SGD"
        assert os.path.dirname(str(result.best_model_path)) == os.path.join(
            str(child.log_dir), "checkpoints"
        )
    opened(parent.child("trial-2", {}), tmp_path)
    parent.close_children("killed")
    parent.close("success")
    query = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
    statuses = [
        run.info.status for run in parent.experiment.search_runs([str(parent.experiment_id)], query)
    ]
    assert sorted(statuses) == ["FINISHED", "FINISHED", "KILLED"]
