"""The models of a run in a real store: its checkpoints, told as a whole each time, and its last."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import raylit as pl
from raylit.core.logger import DataInput
from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow.models import (
    MODEL_TAG,
    Checkpoints,
    bring_up_to_date,
    checkpoints_of,
    lacks_models,
    make_outputs,
    models_of,
    register,
    upload_final,
)
from raylit.testing import TinyModel
from tests.lazy import mlflow
from tests.quiet import QUIET


class ModelCheckpoint(SimpleNamespace):
    """Has those attributes of a callback that are looked at."""

    @property
    def state_key(self) -> str:
        return (
            f"ModelCheckpoint of {getattr(self, 'monitor', None)}, {getattr(self, 'mode', 'min')}"
        )


def kept(*paths: str, best: str = "", **more: Any) -> Checkpoints:
    """Return checkpoints, the step of each its place, the score half of that."""
    files = [
        {"path": path, "step": place, "score": place / 2} for place, path in enumerate(paths, 1)
    ]
    own: dict[str, Any] = {"owner": "ModelCheckpoint", "monitor": None, "mode": "min"}
    return {**own, "best": best, "files": files, "data": None, **more}  # type: ignore[typeddict-item]


def test_what_a_callback_keeps_is_told_with_steps_and_scores() -> None:
    paths = ("/a/epoch=0-step=4.ckpt", "/a/mine.ckpt", "/step=7/other.ckpt")
    callback: Any = ModelCheckpoint(
        best_model_path=paths[1],
        best_k_models=dict(zip(paths, (torch.tensor(0.5), 0.25, None), strict=True)),
        monitor="val/loss",
        mode="max",
    )
    data = DataInput("validation", "Digits", "d" * 32, 10, {})
    assert checkpoints_of(callback, {paths[1]: 8}, data) == {
        "owner": "ModelCheckpoint of val/loss, max",
        "monitor": "val/loss",
        "mode": "max",
        "best": paths[1],
        "files": [
            {"path": paths[0], "step": 4, "score": 0.5},  # of an earlier process: by its name
            {"path": paths[1], "step": 8, "score": 0.25},
            {"path": paths[2], "step": 0, "score": None},
        ],
        "data": ("Digits", "d" * 32),
    }


def test_a_callback_without_scores_keeps_its_newest_and_another_one_nothing() -> None:
    callback: Any = ModelCheckpoint(best_model_path="/a/step=3.ckpt", monitor=None)
    found = checkpoints_of(callback, {}, None)
    assert found["files"] == [{"path": "/a/step=3.ckpt", "step": 3, "score": None}]
    assert (found["owner"], found["data"]) == ("ModelCheckpoint of None, min", None)
    for none in ({}, {"best_model_path": ""}, {"best_model_path": None}):
        assert checkpoints_of(ModelCheckpoint(**none), {}, None)["files"] == []  # type: ignore[arg-type]


def tags(client: Any, experiment: str, run_id: str) -> dict[str, dict[str, str]]:
    return {
        one.tags["raylit.checkpoint"]: one.tags for one in models_of(client, experiment, run_id)
    }


def test_a_run_has_the_models_of_the_checkpoints_that_are_there(
    client: Any, experiment: str, run_id: str
) -> None:
    told: list[Checkpoints] = [
        kept("/a/1.ckpt", best="/a/1.ckpt"),
        kept("/a/1.ckpt", "/a/2.ckpt", best="/a/2.ckpt"),
        kept("/a/3.ckpt", "/a/2.ckpt", best="/a/3.ckpt"),
        kept(),
        kept("/a/4.ckpt"),
    ]
    for one in told:
        for _ in range(2):  # what is told again changes nothing
            bring_up_to_date(client, run_id, one)
            found = tags(client, experiment, run_id)
            assert {*found} == {file["path"] for file in one["files"]}
            assert [path for path in found if found[path]["raylit.alias"] == "best"] == (
                [one["best"]] if one["best"] else []
            )
    assert len(models_of(client, experiment, run_id)) == 1
    own = found["/a/4.ckpt"]
    assert (own["raylit.step"], own["raylit.score"], own["raylit.best"]) == ("1", "0.5", "false")


def test_a_file_that_was_written_anew_is_another_model(
    client: Any, experiment: str, run_id: str
) -> None:
    one = kept("/a/best.ckpt", best="/a/best.ckpt")
    bring_up_to_date(client, run_id, one)
    one["files"][0] |= {"step": 8, "score": 0.25}
    bring_up_to_date(client, run_id, one)
    (own,) = tags(client, experiment, run_id).values()
    assert (own["raylit.step"], own["raylit.score"], own["raylit.best"]) == ("8", "0.25", "true")
    one["files"][0] |= {"step": 0}  # a fit that goes on does not know it
    bring_up_to_date(client, run_id, one)
    assert tags(client, experiment, run_id)["/a/best.ckpt"]["raylit.step"] == "8"
    for step in ("9", "10"):  # without a score, the step tells
        one["files"][0] |= {"step": int(step), "score": None}
        bring_up_to_date(client, run_id, one)
        assert tags(client, experiment, run_id)["/a/best.ckpt"]["raylit.step"] == step


class Climbs(TinyModel):
    def on_validation_epoch_end(self) -> None:
        self.log("climbs", float(self.current_epoch))


def test_a_fit_that_writes_one_file_anew_has_its_newest_step_and_score(tmp_path: Path) -> None:
    logger = MLFlowLogger("anew", save_dir=tmp_path, prefix="p")
    saver = pl.callbacks.ModelCheckpoint(tmp_path, "best", monitor="climbs", mode="max")
    trainer = pl.Trainer(
        **QUIET, max_epochs=3, logger=logger, callbacks=saver, num_sanity_val_steps=0
    )
    trainer.fit(Climbs())
    (model,) = models_of(logger.experiment, logger.experiment_id, str(logger.run_id))
    assert model.tags["raylit.step"] == str(trainer.global_step)
    assert [(one.key, one.value) for one in model.metrics] == [("p-climbs", 2.0)]


def test_two_callbacks_of_one_metric_have_models_of_their_own(
    client: Any, experiment: str, run_id: str
) -> None:
    callbacks: list[Any] = [
        ModelCheckpoint(
            monitor="val_loss", mode=mode, dirpath=folder, best_model_path=f"{folder}/1.ckpt"
        )
        for mode, folder in (("min", "/a"), ("max", "/b"))
    ]
    for one in (*callbacks, callbacks[0]):
        bring_up_to_date(client, run_id, checkpoints_of(one, {}, None))
    assert sorted(tags(client, experiment, run_id)) == ["/a/1.ckpt", "/b/1.ckpt"]


def test_a_model_that_did_not_arrive_is_not_registered(
    client: Any, experiment: str, run_id: str
) -> None:
    made = {}
    for status in ("READY", "FAILED"):
        made[status] = client.create_logged_model(experiment, "model", run_id, {}, {}, "raylit")
        client.finalize_logged_model(made[status].model_id, status)
        time.sleep(0.01)  # the newest is meant
    version = register(client, run_id, "arrived", None)
    source = client.get_model_version("arrived", version).source
    assert source == f"models:/{made['READY'].model_id}"


def test_models_of_others_are_left(client: Any, experiment: str, run_id: str) -> None:
    """Of another callback, of the user, and of another run."""
    other = client.create_run(experiment).info.run_id
    bring_up_to_date(client, other, kept("/a/1.ckpt"))
    bring_up_to_date(client, run_id, kept("/b/1.ckpt", owner="Mine"))
    client.create_logged_model(experiment, "theirs", run_id)
    bring_up_to_date(client, run_id, kept("/a/1.ckpt"))
    bring_up_to_date(client, run_id, kept())
    assert sorted(one.name for one in models_of(client, experiment, run_id)) == [
        "checkpoint 1",
        "theirs",
    ]
    assert [one.name for one in models_of(client, experiment, other)] == ["checkpoint 1"]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/epoch=1-val/loss=0.5.ckpt", "checkpoint loss=0_5"),
        ("s3://bucket/it's 100%: ü.ckpt", "checkpoint it_s 100__ ü"),
        (f"/a/{'x' * 300}.ckpt", f"checkpoint {'x' * 200}"),
        ("/a/sharded", "checkpoint sharded"),
    ],
)
def test_any_path_becomes_a_name_that_mlflow_takes(
    client: Any, experiment: str, run_id: str, path: str, name: str
) -> None:
    bring_up_to_date(client, run_id, kept(path))
    (model,) = models_of(client, experiment, run_id)
    assert (model.name, model.tags["raylit.checkpoint"]) == (name, path)
    assert str(model.status) == "READY"


def test_a_path_is_told_without_its_password_and_known_again(
    client: Any, experiment: str, run_id: str
) -> None:
    path = "https://me:hunter2@host/a.ckpt"
    for _ in range(2):
        bring_up_to_date(client, run_id, kept(path, best=path))
        (model,) = models_of(client, experiment, run_id)
        assert model.tags["raylit.checkpoint"] == "https://me:***@host/a.ckpt"
    bring_up_to_date(client, run_id, kept())
    assert models_of(client, experiment, run_id) == []


def test_a_model_has_the_value_of_the_run_that_it_was_kept_for(
    client: Any, experiment: str, run_id: str
) -> None:
    """The same point, so that the run has it once, and with the data that it is of."""
    for step, value in ((0, 0.5), (1, 0.25), (2, 0.5), (9, 0.5)):
        client.log_metric(run_id, "val_loss", value, timestamp=1000 + step, step=step)
    files: Any = [{"path": "/a/1.ckpt", "step": 3, "score": 0.5}]
    more: dict[str, Any] = {"monitor": "val_loss", "mode": "max", "data": ("Digits", "d1")}
    bring_up_to_date(client, run_id, kept(**more) | {"files": files})
    (model,) = models_of(client, experiment, run_id)
    (metric,) = model.metrics
    assert (metric.value, metric.step, metric.timestamp) == (0.5, 2, 1002)
    assert (metric.dataset_name, metric.dataset_digest) == ("Digits", "d1")
    history = client.get_metric_history(run_id, "val_loss")
    assert sorted(one.step for one in history) == [0, 1, 2, 9]
    files[0] = {"path": "/a/2.ckpt", "step": 3, "score": 0.125}  # a value that was never logged
    bring_up_to_date(client, run_id, kept(**more) | {"files": files})
    (model,) = models_of(client, experiment, run_id)
    assert not model.metrics and model.tags["raylit.score"] == "0.125"


def test_what_counts_is_said_by_the_first_and_stays(
    client: Any, experiment: str, run_id: str
) -> None:
    def says() -> list[str | None]:
        found = client.get_experiment(experiment).tags
        names = ("primaryMetric.name", "primaryMetric.greaterIsBetter")
        return [found.get(f"mlflow.experiment.{name}") for name in names]

    bring_up_to_date(client, run_id, kept("/a/1.ckpt"))
    assert says() == [None, None]
    bring_up_to_date(client, run_id, kept("/a/2.ckpt", monitor="acc", mode="max"))
    assert says() == ["acc", "true"]
    bring_up_to_date(client, run_id, kept("/a/3.ckpt", monitor="loss"))
    assert says() == ["acc", "true"]


def test_outputs_are_the_checkpoints_that_are_left_each_once(
    client: Any, experiment: str, run_id: str
) -> None:
    def outputs() -> list[tuple[str, int]]:
        found = client.get_run(run_id).outputs
        return [(one.model_id, one.step) for one in found.model_outputs] if found else []

    make_outputs(client, run_id)
    assert outputs() == []
    bring_up_to_date(client, run_id, kept("/a/1.ckpt", "/a/2.ckpt"))
    client.create_logged_model(experiment, "theirs", run_id)
    bring_up_to_date(client, run_id, kept("/a/3.ckpt", "/a/2.ckpt"))
    ids = {one.name: one.model_id for one in models_of(client, experiment, run_id)}
    for _ in range(2):
        make_outputs(client, run_id)
        assert sorted(outputs(), key=lambda one: one[1]) == [
            (ids["checkpoint 3"], 1),
            (ids["checkpoint 2"], 2),
        ]


def test_more_models_than_a_page_holds_are_all_found(
    client: Any, experiment: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = client.search_logged_models
    monkeypatch.setattr(
        client, "search_logged_models", lambda *args, **more: search(*args, max_results=2, **more)
    )
    paths = {f"/a/{number}.ckpt" for number in range(5)}
    bring_up_to_date(client, run_id, kept(*paths))
    assert {*tags(client, experiment, run_id)} == paths
    assert len(models_of(client, experiment, run_id)) == 5


def test_an_old_server_is_known_by_its_answer() -> None:
    text = "API request to endpoint /api/2.0/mlflow/{} failed with error code 404 != 200."
    error = mlflow.exceptions.MlflowException
    assert lacks_models(error(text.format("logged-models/search")))
    assert not lacks_models(error(text.format("runs/get")))
    assert not lacks_models(error("logged-models/search failed with error code 503"))


# ---- the final model ----


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model of MLflow."""

    class Doubles(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        def predict(self, model_input: list[float]) -> list[float]:
            """Return twice the numbers."""
            return [2 * number for number in model_input]

    path = str(tmp_path / "final")
    mlflow.pyfunc.save_model(path, python_model=Doubles(), pip_requirements=["mlflow"])
    return path


def test_the_final_model_is_in_the_run_and_under_a_name(
    client: Any, experiment: str, run_id: str, folder: str
) -> None:
    with pytest.raises(ConfigError, match=f"The run {run_id} has no final model"):
        register(client, run_id, "doubles", None)
    bring_up_to_date(client, run_id, kept("/a/model.ckpt"))
    with pytest.raises(ConfigError, match="log_model=True"):  # a checkpoint is none
        register(client, run_id, "doubles", None)
    first, second = (upload_final(client, run_id, folder, step, "pt2") for step in (4, 8))
    run = client.get_run(run_id)
    assert run.data.tags[MODEL_TAG] == second
    assert {(one.model_id, one.step) for one in run.outputs.model_outputs} == {
        (first, 4),
        (second, 8),
    }
    model = client.get_logged_model(second)
    assert (str(model.status), model.tags["raylit.form"]) == ("READY", "pt2")
    described = mlflow.models.Model.load(f"models:/{second}")
    assert (described.model_id, described.run_id) == (second, run_id)
    assert mlflow.pyfunc.load_model(f"models:/{second}").predict([1.5]) == [3.0]
    name = f"doubles-{run_id[:6]}"
    assert register(client, run_id, name, "champion") == "1"
    assert register(client, run_id, name, None) == "2"
    assert client.get_model_version(name, "2").source == f"models:/{second}"
    assert str(client.get_model_version_by_alias(name, "champion").version) == "1"
    register(client, run_id, name, "champion")
    assert str(client.get_model_version_by_alias(name, "champion").version) == "3"


def test_a_model_that_could_not_be_brought_is_marked_and_the_last_one_stays(
    client: Any, experiment: str, run_id: str, folder: str, tmp_path: Path
) -> None:
    good = upload_final(client, run_id, folder, 4, "pt2")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match="MLmodel"):
        upload_final(client, run_id, str(tmp_path / "empty"), 8, "pt2")
    states = {one.model_id: str(one.status) for one in models_of(client, experiment, run_id)}
    assert sorted(states.values()) == ["FAILED", "READY"]
    run = client.get_run(run_id)
    assert run.data.tags[MODEL_TAG] == good
    assert [one.model_id for one in run.outputs.model_outputs] == [good]
