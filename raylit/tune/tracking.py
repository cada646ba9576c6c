"""The sweep's own run in MLflow, below which the trials' runs stand."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from raylit.loggers import MLFlowLogger
from raylit.loggers.mlflow import store
from raylit.runtime.messages import info, warn
from raylit.tune.space import text_of
from raylit.version import __version__

if TYPE_CHECKING:
    from raylit.trainer.trainer import Trainer
    from raylit.tune.result import SweepResult, TrialResult
    from raylit.tune.spec import SweepSpec


def open_parent(
    trainer: Trainer, spec: SweepSpec, name: str, seed: int, run_id: str | None = None
) -> MLFlowLogger | None:
    """Open the sweep's run: in the Trainer's experiment, else in one with the sweep's name.

    None if the Trainer has loggers but no MLflow.

    Args:
        trainer: the sweep's.
        spec: the sweep's.
        name: of the run.
        seed: of the sweep.
        run_id: the run of a sweep that goes on.
    """
    own = next((logger for logger in trainer.loggers if isinstance(logger, MLFlowLogger)), None)
    if own is None and trainer.settings.arguments["logger"] not in (None, True):
        return None
    parent = own.sibling(name) if own is not None else MLFlowLogger(spec.name, run_name=name)
    if run_id is not None:
        parent.resume(run_id)
    tags = {
        "raylit.version": __version__,
        "raylit.sweep": spec.name,
        "raylit.swept": ",".join(spec.swept),
    }
    parent.open(default_root_dir=trainer.default_root_dir, tags=tags)
    if run_id is None:
        parent.log_hyperparams(
            {
                "metric": spec.metric,
                "mode": spec.mode,
                "metrics": ", ".join(f"{name} ({mode})" for name, mode in spec.metrics.items()),
                "num_trials": spec.num_trials,
                "search": _text(spec.search),
                "scheduler": _text(spec.scheduler),
                "seed": seed,
                "space": {key: text_of(value) for key, value in spec.space.items()},
            }
        )
    where = parent.where()
    if store.is_http(where):
        info(f"MLflow: {where}")
    return parent


def log_result(parent: MLFlowLogger, result: SweepResult, best_config: str | None) -> None:
    """Log the best trial, the table and the pictures to the sweep's run."""
    scored = [trial for trial in result.trials if trial.score is not None]
    if not scored:
        return
    best = result.best
    parent.log_metrics({f"best/{name}": best.metrics[name] for name in result.spec.metrics}, step=0)
    parent.log_hyperparams({"best": {**best.config, "trial": best.name}})
    parent.log_text(result.dataframe.to_csv(index=False), "trials.csv")
    parent.log_text(best_config or "", "best.yaml")
    parent.finalize("success")
    _keep_pictures(parent, result)


def _keep_pictures(parent: MLFlowLogger, result: SweepResult) -> None:
    from raylit.tune.plots import kinds_for

    for kind in kinds_for(result):
        try:
            figure = result.plot(kind)
            parent.experiment.log_figure(str(parent.run_id), figure, f"plots/{kind}.png")
        except Exception as error:  # a picture is no reason to lose a sweep
            warn(f"The plot {kind!r} of the sweep could not be kept: {error}")


def close_left(parent: MLFlowLogger, trials: Mapping[str, TrialResult], is_killed: bool) -> None:
    """Set the end state of trials' runs whose processes could not, because they were ended."""
    parent.settle_children()
    by_status: dict[str, list[str]] = {}
    for trial in trials.values():
        if trial.run_id is not None:
            by_status.setdefault(trial.status, []).append(trial.run_id)
    parent.close_children(
        "success", [*by_status.get("finished", ()), *by_status.get("stopped", ())]
    )
    parent.close_children("failed", by_status.get("failed", []))
    parent.close_children("killed" if is_killed else "failed")


def tag_trials(
    parent: MLFlowLogger, trials: Collection[TrialResult], changed: Collection[str]
) -> None:
    """Tag the runs of trials with the reason for their end, and the values that gave their score.

    This is done at the end of the sweep: a trial's own process knows only that it was stopped, and
    says so before; a run's parameters are the values that it began with. A store takes some
    milliseconds for each.

    Args:
        parent: the sweep's run.
        trials: all of them.
        changed: names of those whose values the scheduler has changed.
    """

    def tag(trial: TrialResult) -> None:
        tags = {store.REASON_TAG: trial.stop_reason} if trial.stop_reason else {}
        if trial.name in changed and trial.score is not None:
            tags |= {f"raylit.best.{key}": text_of(value) for key, value in trial.config.items()}
        for name, value in tags.items():
            if trial.run_id:
                parent.experiment.set_tag(trial.run_id, name, value)

    try:
        with ThreadPoolExecutor(4, "raylit-tags") as pool:
            list(pool.map(tag, trials))
    except Exception as error:  # of the store, which may be away
        warn(f"MLflow does not tell of all trials what stopped them: {error}")


def keep_view(parent: MLFlowLogger, result: SweepResult) -> str | None:
    """Keep in MLflow the best view of the trials; return its address, or None if that failed.

    The page shows parallel coordinates of the swept keys and the metrics, of this sweep's trials
    alone. MLflow's own page to compare runs takes no keys and draws the first 3 that differ. The
    view has the form of MLflow's button "Share": a tag of the experiment, whose length is limited,
    so that it is compressed.
    """
    swept = sorted({key for trial in result.trials for key in _varied(trial, result.spec)})
    chart = {
        "uuid": "raylit",
        "type": "PARALLEL",
        "metricSectionId": "raylit",
        "isGenerated": False,
        "deleted": False,
        "runsCountToCompare": 10,
        "showAllRuns": True,
        "selectedParams": swept,
        "selectedMetrics": list(result.spec.metrics),
    }
    section = {
        "uuid": "raylit",
        "name": "Sweep",
        "display": True,
        "isReordered": False,
        "columns": 1,
        "cardHeight": 480,
    }
    name, mode = next(iter(result.spec.metrics.items()))
    state = {
        # in the default order, by date, MLflow hides runs below their parent
        "orderByKey": f"metrics.`best/{name}`",
        "orderByAsc": mode == "min",
        "searchFilter": f"tags.`mlflow.parentRunId` = '{parent.run_id}'",
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [chart],
        "compareRunSections": [section],
        "isAccordionReordered": True,
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    try:
        parent.experiment.set_experiment_tag(
            str(parent.experiment_id),
            f"mlflow.sharedViewState.{parent.run_id}",
            f"deflate;{packed}",
        )
    except Exception as error:  # of the store: a view is no reason to lose a sweep
        warn(f"The view of the sweep could not be kept in MLflow: {error}")
        return None
    page = store.page_of_view(str(parent.experiment_id), str(parent.run_id))
    return store.look(str(parent.tracking_uri), page)


def _varied(trial: TrialResult, spec: SweepSpec) -> list[str]:
    """Return the full names of the values of a trial that are swept."""
    return [
        key
        for key in trial.config
        if any(key == name or key.startswith(f"{name}.") for name in spec.swept)
    ]


def _text(value: object) -> str:
    return str(value) if isinstance(value, (str, dict)) else type(value).__name__
