"""A trial in the process that runs it: a fit in a thread, whose metrics are reported to Ray Tune.

Ray Tune calls `TrialActor`, by which one process runs one trial after the other. Each begins with
the process as the first one found it (`process.py`), with objects of its own, unpickled anew, and
with a seed that follows from its number, so that its results are those of a new process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import threading
import time
import traceback
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import ray
import torch
from ray.tune import Trainable

from raylit.callbacks import ModelCheckpoint, RecoveryCheckpoint
from raylit.checkpoint import find, folder
from raylit.core.datamodule import LightningDataModule
from raylit.core.module import LightningModule
from raylit.errors import CheckpointError, LaunchError, Terminated
from raylit.launch.on_ray import private
from raylit.launch.on_ray.by_value import Pickled
from raylit.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from raylit.loggers.mlflow import store
from raylit.runtime import rng, storage
from raylit.runtime.aliases import CheckpointDict, Loaders
from raylit.runtime.rng import seed_everything
from raylit.trainer.driver import keep_workers
from raylit.trainer.trainer import Trainer
from raylit.tune.aliases import Report, Values
from raylit.tune.process import ProcessState, seed_of
from raylit.tune.remote import Listener
from raylit.tune.report import (
    BestCheckpoint,
    Reporter,
    Reports,
    TrialReport,
    TuneReport,
    end_after_batch,
    keeps_newest,
    validates_once,
)

STOP_S = 60.0  # for a trial to end, once it was told to
LOOK_EVERY_S = 0.25  # whether the sweep is to end
KEEP_PAUSED = 2  # checkpoints that a scheduler asked for, of each trial
DONE = "done"  # names of Ray Tune
TRAINING_ITERATION = "training_iteration"
REPORTS = "reports.jsonl"
ERROR = "traceback.txt"
TRIAL_TAG = "raylit.trial"  # of a trial's run in MLflow: the trial's name


@dataclass
class Made:
    """The objects of one trial, which no other has."""

    trainer: Trainer
    model: LightningModule
    data: LightningDataModule | None = None
    loaders: dict[str, Loaders] = field(default_factory=dict)


class Recipe(Protocol):
    """Makes a trial's objects from its values: full names, such as `model.lr`, to values."""

    def __call__(self, values: dict[str, object]) -> Made: ...


@dataclass
class TrialPlan:
    """The parts that every trial of a sweep is made from.

    Attributes:
        recipe: makes its objects.
        parent: the MLflow run of the sweep, or None.
        folder: where the trials keep their files.
        metrics: what is optimized, the first first; each with its mode.
        seed: of the sweep.
        seeds_trials: whether each trial is seeded with what follows from it.
        ended: how trials ended under a driver that is gone, by name; None if there was none.
        max_failures: how often Ray Tune starts a trial again that has failed.
        stop_key: key that is in the cluster's key-value store once the sweep is to end.
        verbose: whether trials tell what they do.
        num_workers: Ray workers of each trial; 0: it runs in its own process.
    """

    recipe: Recipe
    parent: MLFlowLogger | None
    folder: str
    metrics: dict[str, str]
    seed: int
    seeds_trials: bool
    ended: dict[str, str] | None
    max_failures: int
    stop_key: bytes
    verbose: bool = False
    num_workers: int = 0


class TrialActor(Trainable):
    """Runs trials, one after the other, in one process. Ray Tune calls it, on one thread.

    A subclass made by `trainable` holds the plan.
    """

    pickled: Any = None  # a reference to a pickled TrialPlan in the object store

    def setup(self, config: Values) -> None:
        """Begin with the first trial of this process."""
        self._pickled: Pickled = ray.get(self.pickled)
        plan: TrialPlan = self._pickled.unpack()
        warm_up(plan.parent is not None)
        if not plan.verbose:
            logging.getLogger("raylit").setLevel(logging.WARNING)
        self._process = ProcessState()
        self._context = copy_context()
        self._kept = keep_workers()
        self._context.run(self._kept.__enter__)
        self._fit: TrialFit | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, object]) -> bool:
        """End the trial before, if it still runs, and begin with the next.

        Raises:
            LaunchError: the trial before does not end; Tune starts the next in another process.
        """
        self._end()
        self._process.restore()
        self._begin(new_config)
        return True

    def _begin(self, config: Values) -> None:
        self._config = {key: _plain(value) for key, value in config.items()}
        self._checkpoint: str | None = None
        self._past: list[TrialReport] = []
        self._last: dict[str, object] = {}
        self._report = 0  # number of the last

    def step(self) -> Report:
        """Go on with the trial until it reports or ends."""
        if self._fit is None:
            plan: TrialPlan = self._pickled.unpack()
            self._fit = TrialFit(
                plan, self.trial_name, self._config, self._checkpoint, self._context
            )
            self._past = self._fit.past_reports()
        fit = self._fit
        metrics = self._past.pop(0) if self._past else fit.next_report()
        if metrics is not None:
            self._report = metrics.iteration
            self._last = {TRAINING_ITERATION: metrics.iteration, **metrics.values}
            return self._last
        if fit.how == "failed" and fit.error is not None and fit.plan.max_failures:
            raise fit.error  # Tune starts it again, in a new process
        error = _short(fit.error) if fit.how == "failed" else None
        ended = {"how": fit.how, "run_id": fit.reporter.run_id, "error": error}
        return {TRAINING_ITERATION: 0, **self._last, **ended, DONE: True}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, str | None]:
        """Save the trial as it is at the report Tune saw last; only if a scheduler wants it."""
        saved = self._fit.save() if self._fit is not None else None
        private.number_next_checkpoint(self, self._report)
        return {"ckpt_path": saved or self._checkpoint}

    def load_checkpoint(self, checkpoint: CheckpointDict | None) -> None:
        """Go on from a checkpoint of this trial or of another."""
        self._end()
        self._checkpoint = (checkpoint or {}).get("ckpt_path")

    def _end(self) -> None:
        fit = self._fit
        self._fit = None
        if fit is not None and not fit.stop():
            raise LaunchError(f"{fit.name} did not end within {STOP_S:.0f} s.")

    def cleanup(self) -> None:
        """End the trial, and the Ray workers that it and those before have kept."""
        self._end()
        self._context.run(self._kept.__exit__, None, None, None)


def trainable(pickled: object) -> type[TrialActor]:
    """Return the class that Ray Tune is to run for a sweep.

    Args:
        pickled: a reference to its pickled plan.
    """
    return type("Trial", (TrialActor,), {"pickled": pickled})


class TrialFit:
    """The fit of one trial, in a thread that waits after each report until asked for the next.

    Args:
        plan: of the sweep.
        name: of the trial.
        config: its values.
        checkpoint: what it is to go on from, or None: the newest it has left itself, if any.
        context: in which Ray workers are kept from one trial to the next.
    """

    def __init__(
        self,
        plan: TrialPlan,
        name: str,
        config: Values,
        checkpoint: str | None,
        context: Context,
    ) -> None:
        self.plan = plan
        self.name = name
        self.config = config
        self.checkpoint = checkpoint
        self.folder = os.path.join(plan.folder, name)
        self.error: BaseException | None = None
        self.how = "killed"  # how it ended
        self._is_resumed = plan.ended is not None and checkpoint is None
        self.reporter = Reporter(os.path.join(self.folder, REPORTS), counts=checkpoint is None)
        self._trainer: Trainer | None = None
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name=f"raylit-{name}", daemon=True
        )

    def past_reports(self) -> list[TrialReport]:
        """Return the reports of the trial under a driver that is gone."""
        return list(self.reporter.past) if self._is_resumed else []

    def next_report(self) -> TrialReport | None:
        """Let the fit go on; return its next report, or None when it has ended."""
        if self._thread.ident is None:
            ended = (self.plan.ended or {}).get(self.name, self.reporter.has_ended)
            if self._is_resumed and ended:
                self.how = ended
                return None
            self._thread.start()
        else:
            self.reporter.go_on()
        while True:
            with contextlib.suppress(queue.Empty):
                return self.reporter.reports.get(timeout=LOOK_EVERY_S)
            if private.is_flag_set(self.plan.stop_key):
                self._interrupt()

    def save(self) -> str | None:
        """Save the fit, which waits after a report; returns the path, or None if it has ended."""
        if self._trainer is None:
            return None
        where = os.path.join(self.folder, "paused")
        path = os.path.join(where, f"report={self.reporter.count}.ckpt")
        self._trainer.save_checkpoint(path)
        for old in folder.newest_first(where, "*.ckpt")[KEEP_PAUSED:]:
            folder.remove(old)
        return path

    def stop(self) -> bool:
        """End the fit at its report, or after its batch if the sweep is to end.

        Returns whether it ended in time.
        """
        if self._thread.ident is None:
            return True
        self.reporter.stop()
        deadline = time.monotonic() + STOP_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            if private.is_flag_set(self.plan.stop_key):
                self._interrupt()
            self._thread.join(LOOK_EVERY_S)
        return not self._thread.is_alive()

    def _interrupt(self) -> None:
        """Have the fit saved and ended after the batch it is in; in workers, at its next report."""
        self.reporter.ends = True
        trainer = self._trainer
        if trainer is not None and not self.reporter.is_waiting:
            end_after_batch(trainer)

    # ---- in the thread ----

    def _run(self) -> None:
        try:
            self._do()
            self.how = "stopped" if self.reporter.is_stopped else "finished"
        except Terminated:
            self.how = "killed"  # saved, to be gone on with
        except BaseException as error:
            self.how = "failed"
            self.error = error
            self._tell(error)
        try:
            # That a scheduler has stopped it is not the trial's to say: it may only be a pause
            if self.how == "finished" or (self.how == "failed" and not self.plan.max_failures):
                self.reporter.end(self.how)
        except OSError as error:
            self.how = "failed"
            self.error = self.error or error
        finally:
            # Whatever a full disk does: the sweep waits for this
            self._trainer = None
            self.reporter.reports.put(None)

    def _do(self) -> None:
        plan = self.plan
        number = int(self.name.rpartition("-")[2])
        if plan.seeds_trials:
            seed_everything(seed_of(plan.seed, number), workers=True, verbose=False)
        made = plan.recipe(self.config)
        if not plan.num_workers:
            self._fit(made, self.reporter)
            return
        listener = Listener(self.reporter)
        try:
            self._fit(made, listener.reports)
        finally:
            listener.close()

    def _fit(self, made: Made, reports: Reports) -> None:
        trainer = made.trainer
        self._set_up(trainer, reports)
        start = _still_there(self.checkpoint) or self._newest(trainer)
        if self.plan.parent is not None:
            trainer.loggers.insert(0, self._child(self.plan.parent, start))
        self._trainer = trainer
        trainer.fit(made.model, datamodule=made.data, ckpt_path=start, **made.loaders)

    def _set_up(self, trainer: Trainer, reports: Reports) -> None:
        """Give the trial's files a folder of its own."""
        trainer.loggers = [
            self._own_logger(logger)
            for logger in trainer.loggers
            if not isinstance(logger, MLFlowLogger)
        ]
        trainer.callbacks[:] = [
            self._of_best(trainer) if keeps_newest(callback) else callback
            for callback in trainer.callbacks
        ]
        for saver in trainer.callbacks:
            if isinstance(saver, (ModelCheckpoint, RecoveryCheckpoint)) and saver.dirpath:
                saver.dirpath = os.path.join(os.fspath(saver.dirpath), self.name)
            elif isinstance(saver, ModelCheckpoint):
                saver.dirpath = os.path.join(self.folder, "checkpoints")
        trainer.callbacks.append(
            TuneReport(self.plan.metrics, reports, self.config, self.reporter.past)
        )

    def _of_best(self, trainer: Trainer) -> ModelCheckpoint:
        """Return the callback that saves in place of the ModelCheckpoint added by the Trainer."""
        metric, mode = next(iter(self.plan.metrics.items()))
        return BestCheckpoint(
            monitor=metric,
            mode=mode,
            save_last=True,
            # when `TuneReport` reports: the metric may be one of training
            save_on_train_epoch_end=True if validates_once(trainer) else None,
        )

    def _child(self, parent: MLFlowLogger, start: str | None) -> MLFlowLogger:
        """Return the logger of a run below the sweep's: the trial's own, if it was begun before."""
        tags = {TRIAL_TAG: self.name}
        run_id = self.reporter.run_id
        may_be_again = self.plan.ended is not None or self.plan.max_failures > 0
        if run_id is None and may_be_again:
            # Its process may have died after it made its run and before it wrote down which
            run_id = parent.child_tagged(TRIAL_TAG, self.name)
        if run_id and start is not None:
            return parent.child(self.name, tags, run_id)  # whatever the checkpoint says of its run
        child = parent.child(self.name, tags)
        if run_id:
            child.repeat(run_id)
        return child

    def _newest(self, trainer: Trainer) -> str | None:
        """Return the newest checkpoint that the trial has left, if it was begun before."""
        if not self.reporter.was_begun:
            return None
        with contextlib.suppress(CheckpointError):
            return find.resolve("last", trainer.savers, self.folder, "validate")
        return None

    def _own_logger(self, logger: Logger) -> Logger:
        """Return one trial's logger: no trial of this or another sweep may write where one does."""
        if isinstance(logger, (CSVLogger, TensorBoardLogger)):
            return logger.in_version(f"{os.path.basename(self.plan.folder)}/{self.name}")
        return logger  # unpickled for this trial alone

    def _tell(self, error: BaseException) -> None:
        """Keep the traceback of a trial that failed where it is found."""
        text = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):
            storage.write_text(os.path.join(self.folder, ERROR), text)
        parent = self.plan.parent
        if parent is not None and self.reporter.run_id:
            parent.tell_of_child(self.reporter.run_id, _short(error), text, ERROR)


def _still_there(path: str | None) -> str | None:
    """Return a checkpoint to go on from, or the newest beside it if that is gone.

    It may be of another trial, which has trained on since and keeps its last ones only.
    """
    if path is None or folder.exists(path):
        return path
    return next(iter(folder.newest_first(os.path.dirname(path), "*.ckpt")), path)


def warm_up(with_mlflow: bool) -> None:
    """Import the modules of a first fit, and make one optimizer, whose first step imports more."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    state = rng.state()
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    rng.restore(state)
    if with_mlflow:
        store.load()


def _short(error: BaseException | None) -> str:
    """Return an exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _plain(value: object) -> object:
    """Return a number of numpy as Python's, however deep."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value.item() if isinstance(value, np.generic) else value
