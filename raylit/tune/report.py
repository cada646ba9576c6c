"""From a fit to the sweep: the reports of a trial, and the decision whether it is to go on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from raylit.callbacks import Checkpoint, ModelCheckpoint
from raylit.core.logger import as_loggers
from raylit.errors import ConfigError
from raylit.loggers import MLFlowLogger
from raylit.metrics.metrics import to_numbers
from raylit.runtime import storage
from raylit.runtime.aliases import CheckpointDict, PlainDict, StateDict, UserOptimizer
from raylit.tune.aliases import Report, Values

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer
    from raylit.trainer.trainer import Trainer

Decision = Literal["go on", "stop", "end"]

OF_SAVER = ("state_key", "dirpath", "filename", "save_last", "save_top_k", "save_weights_only")


@dataclass
class TrialReport:
    """One report of a trial.

    Attributes:
        iteration: its number, from 1.
        values: metrics by name; their names as `logged`; the `trial_values` that gave them,
            which a scheduler may change; `epoch`, `global_step`, `best_model_path`, `run_id`; and
            `is_last`: whether the fit has all its epochs or steps.
    """

    iteration: int
    values: Report = field(default_factory=dict)


class Reports(Protocol):
    """Where the fit of a trial reports to."""

    def begin(self, run_id: str) -> None:
        """Told that the fit begins, and of its run in MLflow."""

    def report(self, metrics: TrialReport) -> Decision:
        """Report, and return whether the fit goes on, stops, or is to be saved and ended.

        It returns once that is decided.
        """


class Reporter:
    """Reports of a fit that runs in a thread of this process, and the file in which they are kept.

    The file outlives driver and process. A trial that is begun again knows from it its earlier
    reports and its own run of MLflow.

    Args:
        path: the file, one JSON object a line; local or a URL.
        counts: whether the number of a report follows from those in the file; else, of a fit that
            goes on from another trial's checkpoint, it is that of the fit.

    Attributes:
        past: what the file held at the start.
        count: how many reports there were.
        run_id: the trial's run in MLflow, or None.
        has_ended: whether the trial has, and how, or None.
        reports: those that the sweep has not seen; None at the end.
        is_waiting: whether the fit waits for a decision.
        is_stopped: whether it was told to stop.
        ends: whether it is to be saved and ended at its next report.
    """

    def __init__(self, path: str, counts: bool = True) -> None:
        self._path = path
        self._counts = counts
        self._lines: list[PlainDict] = _read_lines(path)
        if not storage.is_url(path):
            storage.end_torn_line(path)
        self.past = [
            TrialReport(line["report"], line["values"]) for line in self._lines if "report" in line
        ]
        self.run_id: str | None = next(
            (line["begun"] for line in self._lines if "begun" in line), None
        )
        self.has_ended: str | None = next(
            (line["ended"] for line in self._lines if "ended" in line), None
        )
        self.was_begun = bool(self._lines)
        self.count = max((one.iteration for one in self.past), default=0)
        self.reports: queue.Queue[TrialReport | None] = queue.Queue()
        self.is_waiting = self.is_stopped = self.ends = False
        self._decided = threading.Semaphore(0)
        self._decision: Decision = "go on"

    # ---- of the sweep ----

    def go_on(self) -> None:
        """Let the fit go on."""
        if self.is_waiting:
            self._decide("go on")

    def stop(self, decision: Decision = "stop") -> None:
        """Have the fit stop at its report, or at the next."""
        self._decide(decision)

    def _decide(self, decision: Decision) -> None:
        self.is_stopped = decision == "stop"
        self._decision = decision
        self._decided.release()

    # ---- of the fit ----

    def begin(self, run_id: str) -> None:
        self.run_id = run_id or self.run_id
        self._write({"begun": run_id})

    def report(self, metrics: TrialReport) -> Decision:
        if self._counts:
            # The checkpoint of an epoch is written before its report, and does not count it
            at = _place(metrics)
            same = next((one for one in self.past if _place(one) == at), None)
            metrics.iteration = self.count + 1 if same is None else same.iteration
            if same is not None:
                return "go on"  # reported before the process died that went on to here
        self.count = metrics.iteration
        self._write({"report": metrics.iteration, "values": metrics.values})
        if self.ends:
            return "end"
        self.is_waiting = True
        self.reports.put(metrics)
        self._decided.acquire()
        self.is_waiting = False
        return self._decision

    def end(self, how: str) -> None:
        """Remember how the trial ended: `finished`, `stopped` or `failed`."""
        self._write({"ended": how})

    def _write(self, line: dict[str, object]) -> None:
        self._lines.append(line)
        text = json.dumps(line) + "\n"
        if storage.is_url(self._path):
            whole = "".join(json.dumps(one) + "\n" for one in self._lines)
            storage.write_text(self._path, whole)
            return
        os.makedirs(os.path.dirname(self._path), exist_ok=True)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(text)


def _place(metrics: TrialReport) -> tuple[object, object]:
    """Return where in the fit a report was made."""
    return metrics.values.get("epoch"), metrics.values.get("global_step")


def _read_lines(path: str) -> list[PlainDict]:
    """Return the objects in a file; a line that is torn was never reported."""
    lines: list[PlainDict] = []
    try:
        with storage.downloaded(path) as local, open(local, encoding="utf-8") as file:
            for text in file:
                with contextlib.suppress(json.JSONDecodeError):
                    lines.append(json.loads(text))
    except FileNotFoundError:
        return []
    return lines


class TuneReport(Checkpoint):
    """Reports logged values, after every validation, or every epoch if there is none.

    It is the last of all callbacks, after those that save checkpoints.

    Args:
        metrics: what the sweep optimizes, with `min` or `max`; must have been logged.
        reports: where to.
        config: the trial's values, which become parameters of its run.
        past: what the trial has reported before, if it goes on.
    """

    def __init__(
        self,
        metrics: dict[str, str],
        reports: Reports,
        config: Values,
        past: Sequence[TrialReport] = (),
    ) -> None:
        self.metrics = metrics
        self.reports = reports
        self.config = config
        self.past = past
        self.count = 0
        name, mode = next(iter(metrics.items()))
        known = [one.values[name] for one in past if name in one.values]
        known = [value for value in known if value == value]
        pick = min if mode == "min" else max
        # The trial's own: its checkpoint may be another's, whose best was better
        self.best: float | None = pick(known, default=None)
        self.is_over = False
        self._options: list[list[dict[str, float]]] = []
        self._donors: list[list[dict[str, float]]] | None = None

    # ---- what a checkpoint holds of it ----

    def state_dict(self) -> StateDict:
        return {"count": self.count, "options": self._options}

    def load_state_dict(self, state_dict: StateDict) -> None:
        self.count = state_dict["count"]
        self._donors = state_dict["options"]

    def on_load_checkpoint(
        self, trainer: RunningTrainer, pl_module: LightningModule, checkpoint: CheckpointDict
    ) -> None:
        """Let savers go on with the files of this trial where the checkpoint is another's.

        Its state of them tells of that trial's files: this trial's best would no longer be known,
        and its files be left behind.
        """
        states = checkpoint.get("callbacks", {})
        savers = [one for one in trainer.callbacks if isinstance(one, ModelCheckpoint)]
        for saver in savers:
            stored = states.get(saver.state_key)
            if stored and stored.get("dirpath") != saver.dirpath:
                states[saver.state_key] = self._own_files(saver)

    def _own_files(self, saver: ModelCheckpoint) -> StateDict:
        """Return the state of a saver as this trial's reports of before tell it."""
        state: StateDict = saver.state_dict()
        folder = str(saver.dirpath)
        if saver.save_last:
            name = saver.CHECKPOINT_NAME_LAST + saver.FILE_EXTENSION
            state["last_model_path"] = os.path.join(folder, name)
        saved = [
            one
            for one in self.past
            if os.path.dirname(one.values.get("best_model_path") or "") == folder
        ]
        name, mode = next(iter(self.metrics.items()))
        if saver.monitor is None and saved:
            state["best_model_path"] = saved[-1].values["best_model_path"]
        elif (saver.monitor, saver.mode) == (name, mode):
            scored = [one for one in saved if math.isfinite(one.values.get(name, math.nan))]
            pick = min if mode == "min" else max
            best = pick(scored, key=lambda one: one.values[name], default=None)
            if best is not None:
                path = best.values["best_model_path"]
                value = torch.tensor(best.values[name])
                state.update(
                    best_model_path=path,
                    kth_best_model_path=path,
                    best_model_score=value,
                    kth_value=value,
                    current_score=value,
                    best_k_models={path: value},
                )
        return state

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._options = [_options_of(optimizer) for optimizer in trainer.optimizers]
        if trainer.is_global_zero:
            self.reports.begin(_run_id(trainer))
            for logger in trainer.loggers:
                if isinstance(logger, MLFlowLogger):
                    logger.log_hyperparams(self.config)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the optimizers the options of this trial where another's checkpoint brought its own.

        A learning rate that a scheduler has changed since is changed in proportion.
        """
        if self._donors is None or self._donors == self._options:
            return
        for optimizer, own, donor in zip(
            trainer.optimizers, self._options, self._donors, strict=False
        ):
            for group, mine, theirs in zip(optimizer.param_groups, own, donor, strict=False):
                for name, value in mine.items():
                    before = theirs.get(name, value)
                    if value == before:
                        continue
                    is_rate = name in ("lr", "initial_lr") and before
                    group[name] = group[name] * value / before if is_rate else value
        for config in trainer.lr_scheduler_configs:
            groups = config.scheduler.optimizer.param_groups
            if hasattr(config.scheduler, "base_lrs"):  # ReduceLROnPlateau has none
                config.scheduler.base_lrs = [group["initial_lr"] for group in groups]

    # ---- reports ----

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _reports_with_validation(trainer):
            self._report(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, where validation does not run exactly once per epoch."""
        in_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
        if in_fit and _reports_with_validation(trainer):
            self._report(trainer)

    def _report(self, trainer: Trainer) -> None:
        if self.is_over:
            return
        values: Report = dict(to_numbers(trainer.callback_metrics))
        for name in self.metrics:
            if name not in values:
                logged = ", ".join(values) or "nothing"
                raise ConfigError(
                    f"The sweep optimizes {name!r}, which was not logged. Logged: {logged}. Log"
                    " it, or change the sweep's metric."
                )
        self.count += 1
        self._log_best(trainer, values)
        decision: Decision = "go on"
        if trainer.is_global_zero:
            values["logged"] = list(values)
            values["trial_values"] = self.config
            values["epoch"] = trainer.current_epoch
            values["global_step"] = trainer.global_step
            values["best_model_path"] = _best_path(trainer, self.metrics)
            values["run_id"] = _run_id(trainer)
            values["is_last"] = _is_last(trainer)
            report = TrialReport(self.count, values)
            decision = self.reports.report(report)
            self.count = report.iteration
        decision = trainer.strategy.broadcast(decision)
        self.is_over = decision != "go on"
        if decision == "stop" and not _is_last(trainer):  # else it ends by itself, as any fit
            trainer.min_epochs = 0
            trainer.min_steps = None
            trainer.should_stop = True
        elif decision == "end":
            end_after_batch(trainer)

    def _log_best(self, trainer: Trainer, values: Report) -> None:
        """Log the best value so far under a name of its own, so that runs can be sorted by it."""
        name, mode = next(iter(self.metrics.items()))
        value = values[name]
        pick = min if mode == "min" else max
        if self.best is None or (value != self.best and pick(value, self.best) == value):
            self.best = value
            if trainer.is_global_zero:
                for logger in as_loggers(trainer.loggers):
                    logger.log_metrics(metrics={f"best/{name}": value}, step=trainer.global_step)


def end_after_batch(trainer: Trainer) -> None:
    """Have a fit saved and ended after the batch it is in, as by SIGTERM."""
    if trainer.run is not None:
        trainer.run.request_end()


def _options_of(optimizer: UserOptimizer) -> list[dict[str, float]]:
    """Return the numbers among the options of each group of an optimizer."""
    return [
        {
            name: float(value)
            for name, value in group.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        for group in optimizer.param_groups
    ]


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint of the best report, and the newest to go on from.

    A metric that is not logged is reported by `TuneReport`.
    """

    def _save_monitor_checkpoint(self, trainer: RunningTrainer, metrics: dict[str, Tensor]) -> bool:
        return self.monitor in metrics and super()._save_monitor_checkpoint(trainer, metrics)


def _reports_with_validation(trainer: Trainer) -> bool:
    return trainer.enable_validation and not validates_once(trainer)


def validates_once(trainer: Trainer) -> bool:
    """Tell whether validation, if there is one, runs at the end of each epoch, and only there."""
    return (
        trainer.val_check_interval == 1.0
        and trainer.val_check_time_s is None
        and trainer.check_val_every_n_epoch == 1
    )


def keeps_newest(callback: object) -> bool:
    """Tell whether a callback is a ModelCheckpoint as a Trainer that was given none adds it."""
    if type(callback) is not ModelCheckpoint:
        return False
    plain = ModelCheckpoint()
    return all(getattr(callback, name) == getattr(plain, name) for name in OF_SAVER)


def _is_last(trainer: Trainer) -> bool:
    """Tell whether a fit has all its epochs or steps, so that nothing is left to stop."""
    epochs = None if _reports_with_validation(trainer) else trainer.max_epochs
    return trainer.current_epoch + 1 == epochs or trainer.global_step == trainer.max_steps


def _best_path(trainer: Trainer, metrics: Mapping[str, str]) -> str:
    """Return the best checkpoint by the sweep's metric, else by that of the first saver."""
    savers = [one for one in trainer.callbacks if isinstance(one, ModelCheckpoint)]
    wanted = next(iter(metrics.items()))
    saver = next((one for one in savers if (one.monitor, one.mode) == wanted), None)
    saver = saver or next(iter(savers), None)
    return saver.best_model_path if saver is not None else ""


def _run_id(trainer: Trainer) -> str:
    return next((one.run_id for one in as_loggers(trainer.loggers) if one.run_id), "")
