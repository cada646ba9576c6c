"""Runs a sweep on Ray Tune. The package `raylit.tune` is the only place for it."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import secrets
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import ray
from ray import tune
from ray.tune.schedulers import HyperBandScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher

from raylit.callbacks import ModelCheckpoint
from raylit.errors import ConfigError, LaunchError, Terminated
from raylit.launch.on_ray import private
from raylit.launch.on_ray.by_value import Pickled
from raylit.launch.on_ray.cluster import connect, say_dashboard
from raylit.loggers import MLFlowLogger
from raylit.runtime.aliases import PlainDict
from raylit.runtime.masked_config import is_masked, mask_config
from raylit.runtime.messages import info, is_verbose, number_of, warn
from raylit.runtime.secrets import holds_secret, without_secrets
from raylit.runtime.storage import is_url
from raylit.trainer.trainer import Trainer
from raylit.tune import tracking
from raylit.tune.aliases import Values
from raylit.tune.capacity import Capacity, capacity_for
from raylit.tune.display import SweepDisplay, print_table
from raylit.tune.folders import find_sweep, mark_left, unfinished
from raylit.tune.process import seed_of
from raylit.tune.record import SweepRecord
from raylit.tune.report import keeps_newest
from raylit.tune.result import SweepResult, TrialResult, sort_trials
from raylit.tune.slots import at_most
from raylit.tune.space import SweepError, examples, text_of
from raylit.tune.spec import SweepSpec
from raylit.tune.stops import EndOfSweep, Stops, budget_s, make_stopper
from raylit.tune.trial import ERROR, Made, TrialPlan, trainable
from raylit.tune.warm import Earlier, earlier_trials

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

BEST = "best.yaml"  # in the sweep's folder
PAUSING: tuple[type[TrialScheduler], ...] = (HyperBandScheduler, PopulationBasedTraining)
ENVIRONMENT = {
    # relative paths of user code mean what they mean elsewhere
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # which prints tables whatever `verbose` says
    "RAY_AIR_NEW_OUTPUT": "0",
    # CSV, JSON and TensorBoard files of each trial, beside what the trial itself logs
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # a trial that failed before its first report has none
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # the state of a sweep is in its own record
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "90",
    "TUNE_WARN_THRESHOLD_S": "5",
}


class SweepRecipe(Protocol):
    """Makes each trial's objects."""

    def __call__(self, values: Values) -> Made: ...

    def best_config(self, values: Mapping[str, object], seed: int) -> str:
        """Return as YAML a config that repeats a trial with these values and this seed."""


@dataclass
class Ending:
    """How a sweep is asked to end before its time.

    Attributes:
        key: key in the cluster's store that tells the trials.
        signal: which signal came, or None.
        status: of the sweep, for its record and its MLflow run.
    """

    key: bytes
    signal: int | None = None
    status: str = "failed"

    def tell(self) -> None:
        """Have the trials that run saved and ended, whatever epoch they are in."""
        private.set_flag(self.key)


def run_sweep(
    trainer: Trainer,
    recipe: SweepRecipe,
    spec: SweepSpec,
    *,
    resume: str | bool = False,
    files: Mapping[str, str] | None = None,
    command: Callable[[str], str] | None = None,
) -> SweepResult:
    """Run the trials of a sweep, or go on with one.

    Args:
        trainer: whose storage and loggers are the sweep's.
        recipe: makes each trial's objects.
        spec: what is tried, and how.
        resume: a sweep to go on with: its name or folder; True: the newest of this name.
        files: texts to keep in the sweep's folder.
        command: gives, for the name of the sweep, the command that goes on with it.

    Raises:
        ConfigError: something is wrong; nothing was started.
        LaunchError: every trial failed.
        KeyboardInterrupt, Terminated: a signal ended the sweep; its trials are saved.
    """
    _check_trainer(trainer, spec)
    _check_secrets(spec)
    storage = _storage(trainer)
    records = os.path.join(trainer.default_root_dir, "raylit_runs") if is_url(storage) else storage
    name = find_sweep(records, spec.name, resume) if resume else _new_name(spec)
    record = SweepRecord(os.path.join(records, name), spec)
    ending = Ending(f"raylit sweep {name} {uuid.uuid4().hex}".encode())
    go_on = _how_to_go_on(name, command)
    # Before it is read and MLflow is told: two processes that went on with one sweep left
    # one of its runs open
    with record.held():
        if resume:
            record.read()
            _check_same(record, spec, name)
        result = _run_held(trainer, recipe, spec, record, ending, files or {}, go_on)
    print_table(result)
    if ending.signal is not None:
        info(f"The sweep was ended; its trials are saved. {go_on}")
        raise Terminated if ending.signal == signal.SIGTERM else KeyboardInterrupt
    if ending.status != "success":
        raise LaunchError(_why_all_failed(result))
    return result


def _run_held(
    trainer: Trainer,
    recipe: SweepRecipe,
    spec: SweepSpec,
    record: SweepRecord,
    ending: Ending,
    files: Mapping[str, str],
    go_on: str,
) -> SweepResult:
    """Run the trials of a sweep whose record no other process has."""
    records, name = os.path.split(record.folder)
    storage = _storage(trainer)
    seed = _seed(spec, record)
    earlier = earlier_trials(spec, records, trainer)
    _say_left(records, name, trainer)
    connect((spec.max_concurrent or 1) * _wanted(spec).get("CPU", 1.0))
    capacity = capacity_for(spec)
    spec = copy.copy(spec)
    spec.seed = seed
    spec.max_concurrent = capacity.concurrent
    parent = tracking.open_parent(trainer, spec, name, seed, record.head.get("run_id"))
    plan = TrialPlan(
        recipe=recipe,
        parent=parent,
        folder=os.path.join(storage, name),
        metrics=spec.metrics,
        seed=seed,
        seeds_trials="seed_everything" not in spec.space,
        ended=record.ended() if record.head else None,
        max_failures=spec.max_failures,
        stop_key=ending.key,
        verbose=is_verbose(),
        num_workers=spec.num_workers,
    )
    with _closing(parent, record, ending, go_on):
        record.open(_head(spec, name, parent))
        for file, text in files.items():
            with open(os.path.join(record.folder, file), "w", encoding="utf-8") as kept:
                kept.write(text)
        _say_start(spec, plan, parent, record, capacity)
        with SweepDisplay(spec, record, trainer.max_epochs, budget_s(spec)):
            parts = {"The model, the data or the Trainer": recipe}
            trial = trainable(ray.put(Pickled(plan, parts)))
            with _handling_signals(ending, parent), _quiet():
                _run(spec, trainer, name, storage, trial, record, capacity, ending, earlier)
        result = _collect(spec, record, parent, plan.folder, ending.signal is not None)
        if ending.signal is not None:
            ending.status = "killed"
        elif any(trial.score is not None for trial in result.trials):
            ending.status = "success"
        best = _keep_best(recipe, record, result, seed)
        if parent is not None:
            tracking.close_left(parent, record.trials, ending.status == "killed")
            tracking.tag_trials(parent, result.trials, record.changed)
            tracking.log_result(parent, result, best)
            result.where = tracking.keep_view(parent, result) or result.where
    return result


def _storage(trainer: Trainer) -> str:
    """Return the folder, or URL, that holds a folder for each sweep."""
    return trainer.storage_path or os.path.join(trainer.default_root_dir, "raylit_runs")


@contextlib.contextmanager
def _closing(
    parent: MLFlowLogger | None, record: SweepRecord, ending: Ending, go_on: str
) -> Iterator[None]:
    """Context in which the trials run; it closes the record and the MLflow runs, whatever comes."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        ending.status = "killed"
        info(f"The sweep was ended at once. {go_on}")
        raise
    finally:
        private.clear_flag(ending.key)
        record.close(ending.status)
        if parent is not None:
            parent.close_children("killed")
            parent.close(ending.status)


# ---- before ----


def _check_trainer(trainer: Trainer, spec: SweepSpec) -> None:
    if trainer.num_workers > 1 and not spec.num_workers:
        raise ConfigError(
            "Each trial of a sweep runs in one process unless resources say otherwise, but the"
            f" Trainer has num_workers={trainer.num_workers}. Use num_workers=0, or"
            f" resources={{'num_workers': {trainer.num_workers}, 'CPU': 1}} for as many Ray workers"
            " in each trial."
        )
    for key in ("trainer.num_workers", "trainer.devices", "trainer.num_nodes"):
        if key in spec.space:
            raise SweepError(
                f"{key}: all trials of a sweep have the same number of workers, for which room is"
                " reserved. Give resources: {num_workers: ...}.",
                ("space", key),
            )
    if trainer.async_validation:
        raise ConfigError(
            "Trainer(async_validation=...) in a sweep: the trials reserve all there is, and their"
            " validations could wait for each other for ever. Leave async_validation out."
        )
    savers = [one for one in trainer.callbacks if isinstance(one, ModelCheckpoint)]
    watched = [(one.monitor, one.mode) for one in savers if not keeps_newest(one)]
    wanted = next(iter(spec.metrics.items()))
    if watched and len(watched) == len(savers) and wanted not in watched:
        by = f"by {watched[0][0]!r}" if watched[0][0] else "the newest"
        warn(
            f"The checkpoint of each trial is {'the best ' if watched[0][0] else ''}{by}, which is"
            f" not where {wanted[0]!r} was best. Add ModelCheckpoint(monitor={wanted[0]!r},"
            f" mode={wanted[1]!r}) to the callbacks."
        )


def _check_secrets(spec: SweepSpec) -> None:
    for key, value in spec.space.items():
        if any(holds_secret(key, one) for one in examples(value)):
            raise SweepError(
                f"{key} looks like a secret, and the values of a sweep stand in its files, in"
                " MLflow and in Ray's logs. Give it in the config or as a flag, the same for all"
                " trials.",
                ("space", key),
            )


def _new_name(spec: SweepSpec) -> str:
    return f"{spec.name}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def _seed(spec: SweepSpec, record: SweepRecord) -> int:
    """Return the sweep's seed: as before, as given, that of the process, or a new one."""
    if "seed" in record.head:
        return int(record.head["seed"])
    if spec.seed is not None:
        return spec.seed
    given = os.environ.get("PL_GLOBAL_SEED")
    return int(given) if given else secrets.randbelow(2**31)


def _fingerprint(spec: SweepSpec) -> PlainDict:
    """Return the settings that must be the same in a sweep that goes on."""
    return {
        "space": {key: text_of(value) for key, value in spec.space.items()},
        "metrics": spec.metrics,
    }


def _head(spec: SweepSpec, name: str, parent: MLFlowLogger | None) -> PlainDict:
    return {
        "name": name,
        "sweep": spec.name,
        "host": socket.gethostname(),
        "seed": spec.seed,
        "run_id": parent.run_id if parent is not None else None,
        "tracking_uri": without_secrets(str(parent.tracking_uri)) if parent is not None else None,
        **_fingerprint(spec),
    }


def _check_same(record: SweepRecord, spec: SweepSpec, name: str) -> None:
    """Find out whether a sweep that is to go on is this one.

    Raises:
        SweepError: it has another space, or other metrics.
    """
    for key, value in _fingerprint(spec).items():
        before = record.head.get(key)
        if before != value:
            raise SweepError(
                f"The sweep {name} is another one: its {key} was {before}, and is {value} now. Go"
                " on with the settings it had, or start a new one without resume.",
                (key,),
            )


def _say_left(records: str, name: str, trainer: Trainer) -> None:
    """Name sweeps whose drivers died, and end their MLflow runs."""
    for left in unfinished(records):
        if left == name:
            continue
        head = mark_left(os.path.join(records, left))
        if head is None:
            continue
        info(f"The sweep {left} was left by a process that has died. {_how_to_go_on(left)}")
        uri = _whole_uri(head.get("tracking_uri"), trainer)
        if head.get("run_id") and uri is not None:
            MLFlowLogger.end_tree(uri, head["run_id"], "killed")


def _whole_uri(uri: str | None, trainer: Trainer) -> str | None:
    """Return an address of MLflow with its password, which a sweep's files do not have."""
    if not is_masked(uri):
        return uri
    own = (str(one.tracking_uri) for one in trainer.loggers if isinstance(one, MLFlowLogger))
    return next((one for one in own if without_secrets(one) == uri), None)


def _how_to_go_on(name: str, command: Callable[[str], str] | None = None) -> str:
    if command is not None:
        return f"Go on with:\n  {command(name)}"
    return f"It goes on with resume={name!r} (raylit tune --resume {name})."


def _wanted(spec: SweepSpec) -> dict[str, float]:
    """Return the resources that one trial reserves in all."""
    own = {name: float(amount) for name, amount in spec.resources.items() if name != "num_workers"}
    return {name: amount * max(1, spec.num_workers) for name, amount in own.items()}


def _say_start(
    spec: SweepSpec,
    plan: TrialPlan,
    parent: MLFlowLogger | None,
    record: SweepRecord,
    capacity: Capacity,
) -> None:
    number = min(capacity.concurrent or spec.num_trials, spec.num_trials)
    at_once = f", {number} at a time" if capacity.concurrent else ""
    info(
        f"Sweep {spec.name}: {number_of(spec.num_trials, 'trial')}{at_once} over"
        f" {', '.join(spec.swept) or 'constants only'}; files in {plan.folder}"
    )
    if capacity.note:
        info(capacity.note)
    if record.past:
        ended = sum(trial.status not in ("pending", "running") for trial in record.past.values())
        begun = number_of(len(record.past), "trial")
        info(f"Resuming: {begun} had begun, {ended} of them have ended.")
    if parent is not None:
        info(f"MLflow: {parent.where()}")
    say_dashboard()


# ---- the trials ----


def _run(
    spec: SweepSpec,
    trainer: Trainer,
    name: str,
    storage: str,
    trial: type[tune.Trainable],
    record: SweepRecord,
    capacity: Capacity,
    ending: Ending,
    earlier: Earlier,
) -> None:
    """Run the trials on Ray Tune."""
    before = [record.raw[number] for number in sorted(record.raw)]
    scheduler = spec.make_scheduler(trainer.max_epochs)
    # Where trials are paused, the search must not count those: `at_most` limits what runs
    is_limited = not isinstance(scheduler, PAUSING)
    search = spec.make_search(_points(spec, before), earlier, is_limited, len(before))
    # Optuna's knows its space; what stands in it would be sampled a second time
    space = {} if type(search).__module__.startswith("raylit") else dict(spec.space)
    record.changes_config = isinstance(scheduler, PopulationBasedTraining)
    stops = make_stopper(spec)
    record.why_stopped = functools.partial(_why_stopped, spec, stops)
    failures = max(1, spec.max_failures)  # a process that was killed is started again once
    tuner = tune.Tuner(
        tune.with_resources(trial, capacity.request),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=spec.metric,
            mode=spec.mode,
            num_samples=spec.num_samples,
            search_alg=search,
            scheduler=scheduler,
            max_concurrent_trials=(
                capacity.concurrent if is_limited and isinstance(search, Searcher) else None
            ),
            # A trial of one epoch takes 1 s, and 10 s in a process of its own, which imports anew
            reuse_actors=not spec.isolate,
            trial_name_creator=record.name_of,
            trial_dirname_creator=record.name_of,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=storage,
            stop=EndOfSweep(stops, ending),
            # a trial is saved when a scheduler wants it
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=failures),
            verbose=0,
            callbacks=[record],
        ),
    )
    with at_most(capacity.concurrent):
        tuner.fit()


def _why_stopped(spec: SweepSpec, stops: Stops, trial: Trial) -> str | None:
    """Return the reason why a trial of Ray Tune was stopped.

    It is a word under `stop`, the end of the sweep, or its scheduler. Schedulers such as ASHA also
    stop trials that have come to their end: for those it is None.
    """
    if trial.trial_id in stops.reasons:
        return f"stop: {stops.reasons[trial.trial_id]}"
    if trial.last_result.get("is_last"):
        return None
    if stops.ended_by is not None:
        return f"end of the sweep: {stops.ended_by}"
    return f"scheduler: {spec.scheduler_name}"


def _points(spec: SweepSpec, before: list[Values]) -> list[Values]:
    """Return the points with which the search is to begin.

    They are those of earlier trials, which the search is told of again, and then the rest of the
    user's points. Random search and grids need not be told, since they draw the same again.
    """
    if spec.search_name in ("random", "grid"):
        return spec.points
    swept = [{key: point[key] for key in spec.swept if key in point} for point in before]
    return swept + spec.points[len(swept) :]


@contextlib.contextmanager
def _handling_signals(ending: Ending, parent: MLFlowLogger | None) -> Iterator[None]:
    """Have a first Ctrl-C, or SIGTERM, end the sweep in good order, and a second one at once.

    The statuses in MLflow are set at once: when a job is stopped, Ray kills this process 3 s later.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # SIGUSR1: Ray Tune sets a handler for it, whatever its settings are, and leaves it behind
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}

    def handle(number: int, frame: object) -> None:
        if ending.signal is not None:
            raise KeyboardInterrupt
        ending.signal = number
        ending.tell()
        if parent is not None:
            threading.Thread(target=_announce, args=(parent,), daemon=True).start()
        what = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        info(f"{what}: the sweep ends once its trials are saved. Again: at once.")

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _announce(parent: MLFlowLogger) -> None:
    parent.announce("killed")
    parent.close_children("killed")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context in which Ray Tune leaves to raylit the things that raylit does itself.

    Tune prints nothing that the display says, leaves Ctrl-C alone, does not save the state of the
    sweep or change a trial's current folder, and gives trials 90 s to end.
    """
    given = {name: os.environ.get(name) for name in ENVIRONMENT}
    names = ("ray.tune", "ray.train", "ray.air")
    levels = {name: logging.getLogger(name).level for name in names}
    os.environ.update(ENVIRONMENT)
    if not is_verbose():
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in given.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


# ---- after ----


def _collect(
    spec: SweepSpec, record: SweepRecord, parent: MLFlowLogger | None, folder: str, is_killed: bool
) -> SweepResult:
    """Return the result of a sweep from the reports of its trials, best first."""
    for trial in record.trials.values():
        if trial.status in ("running", "paused", "pending"):
            trial.status = "killed" if is_killed else "stopped"
    trials = sort_trials(list(record.trials.values()), spec.mode)
    if parent is None:
        return SweepResult(spec, trials, None, folder)
    where = parent.where_compared([trial.run_id for trial in trials if trial.run_id])
    return SweepResult(spec, trials, parent.run_id, folder, where)


def _keep_best(
    recipe: SweepRecipe, record: SweepRecord, result: SweepResult, seed: int
) -> str | None:
    """Write the config of the best trial into the sweep's folder; returns it."""
    if not result.trials or result.trials[0].score is None:
        return None
    best = result.trials[0]
    result.best_values = record.values_of(best)
    text = mask_config(recipe.best_config(result.best_values, seed_of(seed, best.number)))
    result.best_config = os.path.join(record.folder, BEST)
    with open(result.best_config, "w", encoding="utf-8") as file:
        file.write(text)
    return text


def _why_all_failed(result: SweepResult) -> str:
    failed = [trial for trial in result.trials if trial.error]
    if any(result.spec.metric in trial.last for trial in result.trials):
        return (
            f"No trial of the sweep reported a number for {result.spec.metric!r}: all values were"
            " NaN or infinite. Run raylit check, or fit one trial with detect_anomaly=True, to see"
            " where they come from."
        )
    if not failed:
        text = f"No trial of the sweep reported {result.spec.metric!r}."
        if budget_s(result.spec) is not None:
            text += " If it is logged, the time budget ended before its first value: give more."
        return text
    first: TrialResult = min(failed, key=lambda trial: trial.number)
    path = os.path.join(result.folder, first.name, ERROR)
    text = ""
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        text = "\n" + file.read()
    return (
        f"No trial of the sweep reported {result.spec.metric!r}. The first, {first.name}:"
        f" {first.error}{text}"
    )
