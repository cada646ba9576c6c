"""Models of a run: its checkpoints, which stay in place, and the final one, which MLflow loads.

All checkpoints are told each time, and the store is brought to that state: so the result is the
same however often they are told, and whatever was lost in between.

Never here: torch, which `raylit runs` and the process that sends do without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from raylit.errors import ConfigError
from raylit.runtime.secrets import without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.exceptions import MlflowException

    from raylit.core.callback import Checkpoint
    from raylit.core.logger import DataInput

TYPE = "raylit"
FINAL = "model"
PRIMARY_TAG = "mlflow.experiment.primaryMetric.name"
GREATER_TAG = "mlflow.experiment.primaryMetric.greaterIsBetter"
PATH_TAG = "raylit.checkpoint"
OWNER_TAG = "raylit.callback"
BEST_TAG = "raylit.best"
ALIAS_TAG = "raylit.alias"
STEP_TAG = "raylit.step"
SCORE_TAG = "raylit.score"
MODEL_TAG = "raylit.model_id"  # of a run: its final model


class Kept(TypedDict):
    """A checkpoint that is there."""

    path: str
    step: int
    score: float | None


class Checkpoints(TypedDict):
    """The checkpoints that a callback keeps.

    `data` is the name and digest of the data that the score is of.
    """

    owner: str
    monitor: str | None
    mode: str
    best: str
    files: list[Kept]
    data: tuple[str, str] | None


def checkpoints_of(
    callback: Checkpoint, steps: Mapping[str, int], data: DataInput | None
) -> Checkpoints:
    """Return the checkpoints that a callback keeps now.

    Args:
        callback: a ModelCheckpoint or its like.
        steps: after how many steps those of this process were saved.
        data: what was validated on.
    """
    best = str(getattr(callback, "best_model_path", "") or "")
    scores = dict(getattr(callback, "best_k_models", {})) or ({best: None} if best else {})
    monitor = getattr(callback, "monitor", None)
    return {
        "owner": callback.state_key,  # no two callbacks of a Trainer have the same
        "monitor": monitor,
        "mode": str(getattr(callback, "mode", "min")),
        "best": best,
        "files": [
            {
                "path": path,
                "step": steps.get(path, _step_in(path)),
                "score": None if score is None else float(score),
            }
            for path, score in scores.items()
        ],
        "data": None if data is None else (data.name, data.digest),
    }


def _step_in(path: str) -> int:
    found = re.search(r"step=(\d+)", os.path.basename(path))
    return int(found.group(1)) if found else 0


def bring_up_to_date(client: MlflowClient, run_id: str, kept: Checkpoints) -> None:
    """Let a run have the models of these checkpoints, and of no others of their callback.

    They become outputs of the run when it ends: outputs cannot be taken back when files are
    removed.

    Raises:
        Exception: the store does not answer.
    """
    experiment_id = client.get_run(run_id).info.experiment_id
    known: dict[str, LoggedModel] = {}
    for model in models_of(client, experiment_id, run_id):
        if model.tags.get(OWNER_TAG) == kept["owner"]:
            known[model.tags.get(PATH_TAG, "")] = model
    files = {without_secrets(one["path"]): one for one in kept["files"]}
    for path, model in [*known.items()]:
        if path not in files or _is_other(model, files[path]):
            client.delete_logged_model(model.model_id)
            del known[path]
    for one in kept["files"]:
        path = without_secrets(one["path"])
        is_best = one["path"] == kept["best"]
        marks = {BEST_TAG: str(is_best).lower(), ALIAS_TAG: "best" if is_best else ""}
        if path in known:
            if known[path].tags.get(BEST_TAG) != marks[BEST_TAG]:
                client.set_logged_model_tags(known[path].model_id, marks)
            continue
        own = {PATH_TAG: path, OWNER_TAG: kept["owner"], STEP_TAG: str(one["step"])}
        if (score := _score_tag(one["score"])) is not None:
            own[SCORE_TAG] = score
        # not as a folder of artifacts is called: MLflow takes that for the model's
        name = "checkpoint " + re.sub(r"[/:.%\"']", "_", Path(path).stem)[:200]
        model = client.create_logged_model(experiment_id, name, run_id, own | marks, {}, TYPE)
        if one["score"] is not None and kept["monitor"]:
            _link_score(client, run_id, kept, one, str(model.model_id))
        client.finalize_logged_model(model.model_id, "READY")
    if {*files} - {*known} and kept["monitor"]:
        _say_what_counts(client, experiment_id, str(kept["monitor"]), kept["mode"])


def _is_other(model: LoggedModel, file: Kept) -> bool:
    """Tell whether a checkpoint was written anew under its name since its model was made.

    A fit that goes on does not know the steps of checkpoints saved before, but their scores.
    """
    score = _score_tag(file["score"])
    if score is None:
        return bool(model.tags.get(STEP_TAG) != str(file["step"]))
    return bool(model.tags.get(SCORE_TAG) != score)


def _score_tag(score: float | None) -> str | None:
    return None if score is None else repr(score)


def make_outputs(client: MlflowClient, run_id: str) -> None:
    """Let a run that has ended show the checkpoints that are left, among its models.

    Those that a later fit of the same run removes stay outputs, which MLflow's page leaves out. A
    server without models gets none.

    Raises:
        Exception: the store does not answer.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    run = client.get_run(run_id)
    known = {one.model_id for one in run.outputs.model_outputs} if run.outputs else set()
    try:
        models = models_of(client, run.info.experiment_id, run_id)
    except MlflowException as error:
        if lacks_models(error):
            return
        raise
    new = [
        LoggedModelOutput(model.model_id, int(model.tags.get(STEP_TAG, 0)))
        for model in models
        if PATH_TAG in model.tags and model.model_id not in known
    ]
    if new:
        client.log_outputs(run_id, new)


def lacks_models(error: MlflowException) -> bool:
    """Tell whether an error is the answer of a server of MLflow 2, which has no models of runs."""
    return "logged-models" in str(error) and "failed with error code 404" in str(error)


def _say_what_counts(client: MlflowClient, experiment_id: str, monitor: str, mode: str) -> None:
    """Let an experiment's charts begin with the metric of its best models, unless one is set."""
    if PRIMARY_TAG not in client.get_experiment(experiment_id).tags:
        client.set_experiment_tag(experiment_id, PRIMARY_TAG, monitor)
        is_greater_better = str(mode == "max").lower()
        client.set_experiment_tag(experiment_id, GREATER_TAG, is_greater_better)


def _link_score(
    client: MlflowClient, run_id: str, kept: Checkpoints, one: Kept, model_id: str
) -> None:
    """Let a model have the value of the run that it was kept for.

    The same value with the same time: MLflow would keep another one as a second point of the run.
    """
    from mlflow.entities import Metric

    monitor = str(kept["monitor"])
    same = [
        metric
        for metric in client.get_metric_history(run_id, monitor)
        if metric.step <= one["step"] and metric.value == one["score"]
    ]
    if not same:
        return  # it was not logged here
    point = max(same, key=lambda metric: metric.step)
    dataset, digest = kept["data"] or (None, None)
    linked = Metric(
        monitor,
        point.value,
        point.timestamp,
        point.step,
        model_id=model_id,
        dataset_name=dataset,
        dataset_digest=digest,
        run_id=run_id,
    )
    client.log_batch(run_id, [linked])


def models_of(client: MlflowClient, experiment_id: str, run_id: str) -> list[LoggedModel]:
    """Return the models of a run."""
    found: list[LoggedModel] = []
    token: str | None = None
    while True:
        page = client.search_logged_models(
            [experiment_id], f"source_run_id = '{run_id}'", page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


# ---- the final model ----


def upload_final(client: MlflowClient, run_id: str, folder: str, step: int, form: str) -> str:
    """Bring a model in a folder into the run; returns its id.

    Raises:
        Exception: the store does not take it.
    """
    from mlflow.entities import LoggedModelOutput

    experiment_id = client.get_run(run_id).info.experiment_id
    tags = {STEP_TAG: str(step), "raylit.form": form}
    model = client.create_logged_model(experiment_id, FINAL, run_id, tags, {}, TYPE)
    try:
        _name_in_file(folder, model.model_id, run_id)
        client.log_model_artifacts(model.model_id, folder)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
        client.set_tag(run_id, MODEL_TAG, model.model_id)
    except BaseException:
        client.finalize_logged_model(model.model_id, "FAILED")
        raise
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _name_in_file(folder: str, model_id: str, run_id: str) -> None:
    """Let the file that describes a model say which it is."""
    from mlflow.models import Model

    path = os.path.join(folder, "MLmodel")
    described = Model.load(path)
    described.model_id = model_id
    described.run_id = run_id
    described.save(path)


def register(client: MlflowClient, run_id: str, name: str, alias: str | None) -> str:
    """Make the final model of a run a version of a registered model; returns the version.

    Raises:
        ConfigError: the run has none.
    """
    from mlflow.entities import LoggedModelStatus
    from mlflow.exceptions import MlflowException

    experiment_id = client.get_run(run_id).info.experiment_id
    found = [
        one
        for one in models_of(client, experiment_id, run_id)
        if one.name == FINAL and one.status == LoggedModelStatus.READY
    ]
    if not found:
        raise ConfigError(
            f"The run {run_id} has no final model. Fits keep one with MLFlowLogger(log_model=True);"
            " of a checkpoint, raylit export makes one."
        )
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = max(found, key=lambda one: one.creation_timestamp)  # of the last end of the run
    version = client.create_model_version(
        name, f"models:/{model.model_id}", run_id, model_id=model.model_id
    )
    if alias:
        client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)
