"""Runs a sweep on Ray Tune. The package `raylit.tune` is the only place for it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from raylit.core.datamodule import LightningDataModule
from raylit.core.module import LightningModule
from raylit.errors import ConfigError, LaunchError
from raylit.launch.on_ray.by_value import Parcel
from raylit.launch.on_ray.cluster import connect, say_dashboard
from raylit.loggers import MLFlowLogger
from raylit.runtime.messages import info
from raylit.trainer.trainer import Trainer
from raylit.tune.display import SweepDisplay, print_table
from raylit.tune.space import SweepSpec
from raylit.tune.trial import TrialPlan
from raylit.version import __version__


@dataclass
class TrialResult:
    """One trial.

    Attributes:
        name: its folder and the name of its MLflow run.
        config: the values it was run with.
        metrics: the last values logged.
        score: the best value of the sweep's metric, None if it reported none.
        checkpoint: its best checkpoint, or None.
        run_id: its MLflow run, or None.
        iterations: how often it reported.
        time_s: seconds it ran.
        error: what ended it, or None.
    """

    name: str
    config: dict[str, Any]
    metrics: dict[str, Any]
    score: float | None
    checkpoint: str | None
    run_id: str | None
    iterations: int
    time_s: float
    error: str | None = None


@dataclass
class SweepResult:
    """All trials of a sweep.

    Attributes:
        spec: what was asked for.
        trials: best first; those without a score last.
        run_id: the sweep's MLflow run, or None.
        folder: where the trials keep their files.

    Example:
        >>> sweep.best.config, sweep.best.checkpoint
        >>> sweep.dataframe
    """

    spec: SweepSpec
    trials: list[TrialResult] = field(default_factory=list)
    run_id: str | None = None
    folder: str = ""

    @property
    def best(self) -> TrialResult:
        """The trial with the best score.

        Raises:
            LaunchError: no trial reported one.
        """
        if not self.trials or self.trials[0].score is None:
            errors = "; ".join(
                f"{trial.name}: {trial.error}" for trial in self.trials if trial.error
            )
            raise LaunchError(f"No trial of the sweep reported {self.spec.metric!r}. {errors}")
        return self.trials[0]

    @property
    def dataframe(self) -> Any:
        """A pandas DataFrame with a row for each trial: its values, its score, its metrics."""
        import pandas as pd

        rows = [
            {
                "trial": trial.name,
                **trial.config,
                self.spec.metric: trial.score,
                "iterations": trial.iterations,
                "time_s": trial.time_s,
                "checkpoint": trial.checkpoint,
                "run_id": trial.run_id,
                "error": trial.error,
            }
            for trial in self.trials
        ]
        return pd.DataFrame(rows)

    def plot(self) -> Any:
        """Draw the score over each swept value; a matplotlib Figure."""
        from matplotlib.figure import Figure

        keys = sorted({key for trial in self.trials for key in trial.config})
        figure = Figure(figsize=(4 * max(1, len(keys)), 3.5), layout="constrained")
        panels = figure.subplots(1, max(1, len(keys)), squeeze=False)[0]
        scored = [trial for trial in self.trials if trial.score is not None]
        for axes, key in zip(panels, keys, strict=False):
            values = [trial.config[key] for trial in scored]
            numeric = all(isinstance(value, (int, float)) for value in values)
            axes.scatter(
                values if numeric else [str(value) for value in values],
                [trial.score for trial in scored],
            )
            if numeric and values and min(values) > 0 and max(values) / min(values) > 50:
                axes.set_xscale("log")
            axes.set_xlabel(key)
            axes.set_ylabel(self.spec.metric)
            axes.grid(alpha=0.3)
        return figure


def run_sweep(
    trainer: Trainer,
    model: Callable[..., LightningModule],
    datamodule: Callable[..., LightningDataModule] | LightningDataModule | None,
    *,
    spec: SweepSpec | None,
    train_dataloaders: Any,
    val_dataloaders: Any,
    settings: dict[str, Any],
) -> SweepResult:
    """Run the trials of a sweep; see `Tuner.sweep`."""
    if (spec is None) == (not settings):
        raise ConfigError(
            "Tuner.sweep wants the settings of the sweep: space=..., metric=..., ..., or a"
            " SweepSpec as spec=..., but not both."
        )
    spec = SweepSpec(**settings) if spec is None else spec
    if isinstance(model, LightningModule):
        raise ConfigError(
            f"Tuner.sweep got a {type(model).__name__} object; every trial needs one of its own."
            " Give the class, or a function that makes it."
        )
    if trainer.num_workers > 1:
        raise ConfigError(
            "Each trial of a sweep runs in one process, but the Trainer has"
            f" num_workers={trainer.num_workers}. Use num_workers=0."
        )
    if isinstance(datamodule, LightningDataModule) and any(
        key.startswith("data.") for key in spec.space
    ):
        raise ConfigError(
            "The space has data.* keys, but datamodule is an object. Give its class, or a function"
            " that makes it."
        )
    if trainer.async_validation:
        raise ConfigError(
            "Trainer(async_validation=...) in a sweep: the trials reserve all there is, and their"
            " validations could wait for each other for ever. Leave async_validation out."
        )
    trainer.replaced(
        **{
            key.partition(".")[2]: _example(value)
            for key, value in spec.space.items()
            if key.startswith("trainer.")
        }
    )
    connect(spec.max_concurrent or 1, spec.resources)
    name = f"{spec.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
    storage = trainer.storage_path or os.path.join(trainer.default_root_dir, "raylit_runs")
    parent = _parent(trainer, spec, name)
    data = (lambda: datamodule) if isinstance(datamodule, LightningDataModule) else datamodule
    loaders = (
        {"train_dataloaders": train_dataloaders, "val_dataloaders": val_dataloaders}
        if train_dataloaders is not None
        else {}
    )
    plan = TrialPlan(
        trainer.replaced(num_workers=None, devices=None, num_nodes=1),
        model,
        data,
        loaders,
        parent,
        os.path.join(storage, name),
        spec.metric,
        os.environ.get("PL_GLOBAL_SEED"),
    )
    info(
        f"Sweep {spec.name}: {spec.num_trials} trials over"
        f" {', '.join(spec.swept) or 'constants only'}; files in {plan.folder}"
    )
    say_dashboard()
    status = "failed"
    try:
        grid = _run(spec, name, storage, plan)
        result = _collect(spec, grid, parent, plan.folder)
        status = "success" if any(trial.score is not None for trial in result.trials) else "failed"
        if (
            parent is not None
            # Ray ends the process of a trial that its scheduler stopped before the trial could say so
        ):
            parent.close_children(
                "success",
                [trial.run_id for trial in result.trials if trial.run_id and not trial.error],
            )
            parent.close_children("failed")
    except (KeyboardInterrupt, SystemExit):
        status = "killed"
        raise
    finally:
        if parent is not None:
            parent.close_children("killed")
            parent.close(status)
    print_table(result.trials, spec)
    _ = result.best  # raises if there is none
    return result


def _run(spec: SweepSpec, name: str, storage: str, plan: TrialPlan) -> tune.ResultGrid:
    """Run the trials on Ray Tune."""
    os.environ.setdefault(
        "RAY_CHDIR_TO_TRIAL_DIR", "0"
    )  # relative paths of user code mean what they mean elsewhere
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which prints tables whatever `verbose` says
    search = spec.make_search()
    stop = {key: value for key, value in spec.stop.items() if key != "time_budget_s"}
    resources = {
        "cpu" if key == "CPU" else "gpu" if key == "GPU" else key: amount
        for key, amount in spec.resources.items()
    }

    parcel = Parcel(
        plan, {"The model": plan.model, "The datamodule": plan.data, "The Trainer": plan.trainer}
    )

    def trainable(config: dict[str, Any]) -> None:
        parcel.unpack()(config)

    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        param_space=dict(spec.space),
        tune_config=tune.TuneConfig(
            metric=spec.metric,
            mode=spec.mode,
            num_samples=spec.num_samples,
            search_alg=search,
            scheduler=spec.make_scheduler(),
            max_concurrent_trials=spec.max_concurrent if isinstance(search, Searcher) else None,
            time_budget_s=spec.stop.get("time_budget_s"),
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            stop=stop or None,
            verbose=0,
            callbacks=[SweepDisplay(spec)],
        ),
    )
    with _handlers_kept():
        return tuner.fit()


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """Within, a sweep runs.

    Tune leaves its handlers behind, which would swallow the next Ctrl-C, whatever runs then.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parent(trainer: Trainer, spec: SweepSpec, name: str) -> MLFlowLogger | None:
    """Open the sweep's own run in MLflow: the Trainer's experiment, else one with the sweep's name.

    None if it has loggers but no MLflow.
    """
    own = next((logger for logger in trainer.loggers if isinstance(logger, MLFlowLogger)), None)
    if own is None and trainer.settings.arguments["logger"] not in (None, True):
        return None
    parent = own.sibling(name) if own is not None else MLFlowLogger(spec.name, run_name=name)
    tags = {
        "raylit.version": __version__,
        "raylit.sweep": spec.name,
        "raylit.swept": ",".join(spec.swept),
    }
    parent.open(default_root_dir=trainer.default_root_dir, tags=tags)
    parent.log_hyperparams(
        {
            "metric": spec.metric,
            "mode": spec.mode,
            "num_trials": spec.num_trials,
            "space": {k: _text(v) for k, v in spec.space.items()},
        }
    )
    return parent


def _trial_name(trial: Any) -> str:
    return (
        f"trial-{int(trial.trial_id.rpartition('_')[2]):03d}"
        if trial.trial_id.rpartition("_")[2].isdigit()
        else f"trial-{trial.trial_id}"
    )


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return f"grid {value['grid_search']}"
    return (
        getattr(value, "domain_str", None) and f"{type(value).__name__.lower()} {value.domain_str}"
    ) or str(value)


def _example(value: Any) -> Any:
    """Return one value that a key may take, to try it out before anything starts."""
    if isinstance(value, dict):
        return value["grid_search"][0]
    return value.sample() if hasattr(value, "sample") else value


def _collect(
    spec: SweepSpec, grid: tune.ResultGrid, parent: MLFlowLogger | None, folder: str
) -> SweepResult:
    """Put together what the trials reported, and log the best to the sweep's run."""
    trials = []
    pick = min if spec.mode == "min" else max
    for number in range(len(grid)):
        one = grid[number]
        metrics = dict(one.metrics or {})
        frame = one.metrics_dataframe
        scores = (
            [float(value) for value in frame[spec.metric].dropna()]
            if frame is not None and spec.metric in frame
            else []
        )
        trials.append(
            TrialResult(
                name=os.path.basename(one.path),
                config=dict(one.config or {}),
                score=pick(scores) if scores else None,
                metrics={
                    key: value
                    for key, value in metrics.items()
                    if isinstance(value, float) and key not in _TUNE_KEYS
                },
                checkpoint=metrics.get("best_model_path") or None,
                run_id=metrics.get("run_id") or None,
                iterations=int(metrics.get("training_iteration", 0)),
                time_s=float(metrics.get("time_total_s", 0.0)),
                error=_reason(one.error) if one.error else None,
            )
        )
    sign = 1 if spec.mode == "min" else -1
    trials.sort(
        key=lambda trial: (
            trial.score is None,
            sign * trial.score if trial.score is not None else 0,
            trial.name,
        )
    )
    if parent is not None and trials and trials[0].score is not None:
        parent.log_metrics({f"best/{spec.metric}": trials[0].score}, step=0)
        parent.log_hyperparams({"best": {**trials[0].config, "trial": trials[0].name}})
        parent.finalize("success")
    return SweepResult(spec, trials, parent.run_id if parent is not None else None, folder)


def _reason(error: Exception) -> str:
    """Return the user's own exception in one line: Ray wraps it in the traceback as text."""
    cause = getattr(error, "cause", None) or error
    return (
        f"{type(cause).__name__}: {cause}"
        if cause is not error
        else str(error).strip().splitlines()[-1]
    )


_TUNE_KEYS = {"time_this_iter_s", "time_total_s", "time_since_restore", "timestamp"}
