"""The record of a sweep's trials: kept by the driver, and in a file that outlives it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import IO, TYPE_CHECKING

from ray.tune import Callback

from raylit.checkpoint import find
from raylit.errors import ConfigError
from raylit.runtime.aliases import PlainDict
from raylit.runtime.storage import end_torn_line
from raylit.tune.aliases import Report, Values
from raylit.tune.result import ENDED, TrialResult
from raylit.tune.space import SweepError, flatten
from raylit.tune.spec import SweepSpec

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

FILE = find.SWEEP
LOCK = "driver.lock"  # held by the driver: it is free once that is dead


class SweepRecord(Callback):
    """The trials of a sweep as Ray Tune tells of them; the only one who writes them.

    Each trial's values, when it begins, and how it ended stand in `sweep.jsonl` in the sweep's
    folder. From it a sweep goes on whose driver has died (`past`).

    Args:
        folder: of the sweep, on this machine.
        spec: the sweep's.

    Attributes:
        trials: by name, in the order in which they were made.
        past: trials of a driver that is gone, by their numbers.
        head: what the first line says: what the sweep is.
        changed: names of the trials whose values the scheduler has changed.
        changes_config: whether the scheduler changes values, so that of a trial that goes on the
            last ones count, not those it was begun with.
        listeners: called after every change.
        why_stopped: tells, of a trial of Ray Tune, what stopped it; None: nothing, it had ended.
    """

    def __init__(self, folder: str, spec: SweepSpec) -> None:
        self.folder = folder
        self.spec = spec
        self.trials: dict[str, TrialResult] = {}
        self.past: dict[int, TrialResult] = {}
        # By number, as the search has them: the values of now, and those that gave the score
        self.raw: dict[int, Values] = {}
        self.scored: dict[int, Values] = {}
        self.head: PlainDict = {}
        self.changed: set[str] = set()
        self.changes_config = False
        self.listeners: list[Callable[[TrialResult, str], None]] = []
        self.why_stopped: Callable[[Trial], str | None] = lambda trial: "scheduler"
        self._file: IO[str] | None = None
        self._names: dict[str, str] = {}

    def __getstate__(self) -> dict[str, str]:
        """Return next to nothing: Ray Tune pickles its callbacks for a restore not used here."""
        return {"folder": self.folder}

    def __copy__(self) -> SweepRecord:
        return self  # Ray Tune copies its settings; there is one record

    def __deepcopy__(self, memo: dict[int, object]) -> SweepRecord:
        return self

    # ---- the file ----

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Context in which no other process can run this sweep.

        Raises:
            SweepError: another one runs it.
        """
        made = [
            one for one in (self.folder, os.path.dirname(self.folder)) if not os.path.isdir(one)
        ]
        os.makedirs(self.folder, exist_ok=True)
        path = os.path.join(self.folder, LOCK)
        name = os.path.basename(self.folder)
        with open(path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SweepError(f"The sweep {name} is being run by another process.") from None
            # Whoever held it has removed the file, and a lock on a removed file keeps nobody out
            if not _is_at(lock, path):
                raise SweepError(f"The sweep {name} was just ended by another process. Try again.")
            try:
                yield
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)
                with contextlib.suppress(OSError):  # a sweep that has not begun leaves nothing
                    for one in made:
                        os.rmdir(one)

    def open(self, head: PlainDict) -> None:
        """Begin a new file, or go on with the one that is there."""
        path = os.path.join(self.folder, FILE)
        is_new = not os.path.exists(path)
        end_torn_line(path)
        # Line by line, so that a driver that is killed leaves what it had been told
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  open to the end
        if is_new:
            self._write({"sweep": head})
        self.head = head if is_new else self.head

    def read(self) -> None:
        """Read the record that a driver that is gone has written.

        Raises:
            ConfigError: there is no such sweep.
        """
        lines = read_lines(os.path.join(self.folder, FILE))
        if not lines:
            raise ConfigError(f"There is no sweep in {self.folder} to go on with.")
        self.head = lines[0].get("sweep", {})
        for line in lines:
            if "start" in line:
                trial = TrialResult(line["start"], line["config"])
                if trial.config != self.past.setdefault(trial.number, trial).config:
                    self.changed.add(trial.name)
                self.past[trial.number].config = trial.config
                self.raw[trial.number] = line["values"]
            elif "end" in line:
                ended = TrialResult(**line["end"])
                self.past[ended.number] = ended
                if "values" in line:
                    self.scored[ended.number] = line["values"]

    def ended(self) -> dict[str, str]:
        """Return how trials of a driver that is gone ended, by name."""
        return {one.name: one.status for one in self.past.values() if one.status in ENDED}

    def close(self, status: str) -> None:
        """Write how the sweep ended, and let go of the file."""
        if self._file is not None:
            self._write({"closed": status})
            self._file.close()
        self._file = None

    def _write(self, line: dict[str, object]) -> None:
        assert self._file is not None
        self._file.write(json.dumps(line, default=str) + "\n")

    # ---- what Ray Tune tells ----

    def name_of(self, trial: Trial) -> str:
        """Return the name of a trial: its number in the order in which they are made."""
        if trial.trial_id not in self._names:
            number = len(self._names)
            self._names[trial.trial_id] = f"trial-{number:03d}"
            if self.changes_config and number in self.raw:
                trial.config = dict(self.raw[number])
        return self._names[trial.trial_id]

    def of(self, trial: Trial) -> TrialResult:
        """Return the record of a trial."""
        name = self.name_of(trial)
        if name not in self.trials:
            known = self.past.get(int(name.rpartition("-")[2]))
            self.trials[name] = known or TrialResult(name, flatten(trial.config))
        return self.trials[name]

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """A trial begins, or goes on, perhaps with other values."""
        known = self.of(trial)
        config = flatten(trial.config)
        if known.status in ENDED:
            return  # is only told again
        is_new = known.number not in self.raw
        if not is_new and flatten(self.raw[known.number]) != config:
            self.changed.add(known.name)
            is_new = True
        if is_new or known.status == "pending":
            if known.score is None:
                known.config = config
            self.raw[known.number] = dict(trial.config)
            self._write({"start": known.name, "config": config, "values": trial.config})
        known.status = "running"
        self._tell(known, "start")

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: Report,
        **info: object,
    ) -> None:
        """A trial has reported."""
        known = self.of(trial)
        if known.status in ENDED:
            return
        known.status = "running"
        known.iterations = max(known.iterations, int(result["training_iteration"]))
        known.time_s = max(known.time_s, float(result.get("time_total_s", 0.0)))
        known.run_id = result.get("run_id") or known.run_id
        known.checkpoint = result.get("best_model_path") or known.checkpoint
        logged = {name: result[name] for name in result.get("logged") or ()}
        if not logged:
            return  # it has failed before its first report
        known.last = logged
        score = logged.get(self.spec.metric)
        if score is not None and self._is_better(score, known.score):
            values = result.get("trial_values") or self.raw[known.number]
            self.scored[known.number] = values
            known.config = flatten(values)
            known.score = score
            known.metrics = logged
            known.epoch = result.get("epoch")
        self._tell(known, "report")

    def _tell(self, known: TrialResult, event: str) -> None:
        for listener in self.listeners:
            listener(known, event)

    def values_of(self, known: TrialResult) -> Values:
        """Return the values that gave a trial's score, as the search has them."""
        values = self.scored.get(known.number)
        return self.raw.get(known.number, {}) if values is None else values

    def _is_better(self, score: float, than: float | None) -> bool:
        if not math.isfinite(score):  # of a trial that has diverged
            return False
        return than is None or (score < than if self.spec.mode == "min" else score > than)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """A trial has ended, or its scheduler has stopped it."""
        known = self.of(trial)
        if known.status in ENDED:
            return
        last = trial.last_result or {}
        how = last.get("how")
        known.run_id = last.get("run_id") or known.run_id
        if how == "failed":
            known.status = "failed"
            known.error = last.get("error")
        elif how == "killed":
            known.status = "killed"
        else:
            known.stop_reason = None if how == "finished" else self.why_stopped(trial)
            known.status = "finished" if known.stop_reason is None else "stopped"
        self._end(known)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: object
    ) -> None:
        """A trial has failed once too often."""
        known = self.of(trial)
        if known.status in ENDED:
            return
        known.status = "failed"
        known.error = reason(trial.get_pickled_error() or trial.get_error())
        self._end(known)

    def _end(self, known: TrialResult) -> None:
        if known.status in ENDED:
            self._write({"end": asdict(known), "values": self.values_of(known)})
        self._tell(known, "end")


def _is_at(file: IO[str], path: str) -> bool:
    """Tell whether an open file is the one at a path, which others may have removed since."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def read_lines(path: str) -> list[PlainDict]:
    """Return the objects in a file of JSON lines, but for one that a dying process has torn."""
    lines: list[PlainDict] = []
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as file:
        for text in file:
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
    return lines


def reason(error: object) -> str:
    """Return the user's own exception in one line: Ray wraps it in the traceback as text."""
    cause = getattr(error, "cause", None) or error
    first = str(cause).strip().splitlines()
    text = first[0] if first else ""
    if cause is not error:
        return f"{type(cause).__name__}: {text}"
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
