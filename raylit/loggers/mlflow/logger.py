"""MLFlowLogger: experiments, runs, metrics, hyperparameters and checkpoints in MLflow.

The only place for mlflow, loaded on first use.

The run is made on the driver, where user, source file and git commit are known, and goes on through
all restarts of the workers. Rank 0 only appends its values to a file (`journal.py`), which another
process sends (`sender.py`). Only `MlflowClient` is used, with explicit ids: mlflow's functions that
work on a current run would mix up runs in one process.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from raylit.core.logger import DataInput, Logger, LRSearch, number_of
from raylit.errors import ConfigError, MissingPackageError
from raylit.loggers import pictures
from raylit.loggers.mlflow import runs, store
from raylit.loggers.mlflow.delivery import LOCK_S, deliver, deliver_left_behind, deliver_of
from raylit.loggers.mlflow.journal import FOLDER, Full, Header, Journal, Record
from raylit.loggers.mlflow.model import save_final
from raylit.loggers.mlflow.models import FINAL, checkpoints_of, make_outputs, upload_final
from raylit.loggers.mlflow.sender import Sender
from raylit.loggers.mlflow.source import source_tags
from raylit.loggers.mlflow.store import ATTEMPT_TAG, PARENT_TAG, PROCESS_TAG, REASON_TAG, RunStore
from raylit.loggers.mlflow.system import start_elsewhere
from raylit.loggers.mlflow.uploads import CheckpointUploader, best_tags
from raylit.runtime.aliases import StateDict
from raylit.runtime.kinds import check_kinds
from raylit.runtime.messages import info, warn, warn_once
from raylit.runtime.processes import ProcessName
from raylit.runtime.secrets import without_secrets
from raylit.runtime.storage import is_url

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

    from raylit.core.callback import Checkpoint
    from raylit.core.module import LightningModule

DEFAULT_NAME = "lightning_logs"  # of an experiment, as in Lightning
CONFIG = "config.yaml"
ANNOUNCE_S = 1.0  # for the store to take that the run ends, before work goes on
CHILDREN_S = 30.0  # for processes of trials to end, and to send what they have logged
LONG_PARAMS = "config/long_parameters.json"
MOST_FILES = 500  # that wait to be sent
MOST_TABLES = 50  # that a tag has room for
MAX_TAIL_BYTES = 1 << 24  # half a million rows
GROUPS = frozenset({"perf", "optim", "system"})
STATUSES = {"success": "FINISHED", "finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


@dataclass
class _Live:
    """State that belongs to this process and is not pickled."""

    client: MlflowClient | None = None
    run_store: RunStore | None = None
    journal: Journal | None = None
    sender: Sender | None = None
    uploader: CheckpointUploader | None = None
    callbacks: dict[int, Checkpoint] = field(default_factory=dict)
    adopted: bytes = b""
    steps: dict[str, int] = field(default_factory=dict)  # of checkpoints
    node: int | None = None
    elsewhere: subprocess.Popen[str] | None = None  # measures a node without rank 0


def _groups(monitor: bool | Collection[str]) -> frozenset[str]:
    """Return the groups of values to be measured.

    Raises:
        ConfigError: there is no such group.
    """
    if isinstance(monitor, bool):
        return GROUPS if monitor else frozenset()
    given = frozenset([monitor] if isinstance(monitor, str) else monitor)
    unknown = given - GROUPS
    if unknown:
        raise ConfigError(
            f"MLFlowLogger(monitor={monitor!r}) is not known. Use True, False, or some of"
            f" {sorted(GROUPS)}."
        )
    return given


class MLFlowLogger(Logger):
    """Record runs in MLflow.

    Without `tracking_uri`, `save_dir` and MLFLOW_TRACKING_URI everything lies in the Trainer's
    `default_root_dir`, as it would had mlflow itself been used there: the database `mlflow.db`, and
    a folder `mlruns/<experiment id>/<run id>` with `artifacts` and `checkpoints`. `raylit ui`,
    started in that folder, shows it; `where()` tells how to look from elsewhere.

    An MLflow run that is active in the calling thread, or named by MLFLOW_RUN_ID, is logged into,
    and its status is left to whoever started it. Checkpoints are uploaded by a thread, so a
    `log_model` of many large files can lag behind the training.

    Once a run has started, nothing here stops it: all that is logged is kept in a journal in
    `<save_dir>/journals` until the store has it. If the process is killed, or the store does not
    answer until the end, the next run with this `save_dir` sends it, or `raylit sync`.

    Args:
        experiment_name: found, or created. None: what `mlflow.set_experiment` or
            MLFLOW_EXPERIMENT_NAME says, else `lightning_logs`.
        run_name: shown in the UI. None: MLFLOW_RUN_NAME, else MLflow makes one up.
        tracking_uri: `http(s)://...`, `sqlite:///...`, `postgresql://...`, or a local folder (also
            `file:...`), which gets a database `mlflow.db`, since MLflow has given up stores of
            plain files.
        tags: put on the run, beside those that MLflow and the Trainer set.
        save_dir: local folder for the checkpoints, and for database and artifacts if no
            `tracking_uri` is known.
        log_model: checkpoints to keep as artifacts of the run: "all" while they are written, True
            at the end those that are there then (while they are written if the callback keeps all,
            `save_top_k=-1`), False none.
        prefix: put before the names of metrics, joined by "-".
        artifact_location: where a newly created experiment keeps its artifacts, if not where the
            store has them by default.
        run_id: go on with this run instead of creating one.
        monitor: what is measured beside what the user logs, at the steps at which that goes to the
            loggers: of "perf" (time of a step, samples a second, share of waiting for data),
            "optim" (learning rates, norm of the gradients) and "system" (CPU, memory, disk, network
            and GPUs of each node, every 10 s); True: all, False: nothing.

    Raises:
        ConfigError: `log_model` or `monitor` is something else.
        MissingPackageError: mlflow is not installed.

    Example:
        >>> trainer = Trainer(
        ...     logger=MLFlowLogger("digits", tracking_uri="http://localhost:5000", log_model=True)
        ... )
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        experiment_name: str | None = None,
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: Mapping[str, object] | None = None,
        save_dir: str | os.PathLike[str] | None = None,
        log_model: Literal["all"] | bool = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        monitor: bool | Collection[str] = True,
    ) -> None:
        check_kinds(MLFlowLogger.__init__, locals())
        if importlib.util.find_spec("mlflow") is None:
            raise MissingPackageError("mlflow", "MLFlowLogger")
        if log_model not in (True, False, "all"):
            raise ConfigError(
                f"MLFlowLogger(log_model={log_model!r}) is not known. Use True, False or 'all'."
            )
        self._monitor = _groups(monitor)
        self.tags = dict(tags or {})
        self._experiment_name = experiment_name
        self._run_name = run_name
        self._tracking_uri = self._given_uri = tracking_uri
        self._artifact_location = artifact_location
        self._files_dir = os.path.abspath(save_dir) if save_dir else None
        self._given_dir = None if save_dir is None else os.fspath(save_dir)
        self._root_dir = os.getcwd()
        self._log_model = log_model
        self._prefix = prefix
        self._experiment_id: str | None = None
        self._run_id = self._given_run_id = run_id
        self._resumed_run_id: str | None = None
        self._has_run = self._was_opened = False
        self._is_fresh = self._is_joining = self._is_repeated = False
        self._owns_run = True  # its status is ours to set, not the user's
        self._context_tags: dict[str, str] = {}
        # Of the checkpoint that the fit goes on from; see `state_dict`
        self._resumed: StateDict = {}
        self._since_ms = 0
        self._chosen: tuple[int, bool] | None = None  # see `branch`
        # The run that this one branches off, while it is made
        self._origin: MlflowRun | None = None
        self._has_fitted = False
        self._evaluated_step = 0  # of the checkpoint that is evaluated
        self._is_evaluating = False  # in the run of what is evaluated, from `open` to `close`
        self._data: dict[str, DataInput] = {}
        self._tables: list[dict[str, str]] = []
        self._live = _Live()
        # MLFLOW_TRACKING_* of the process that sent this logger to another one
        self._environment: dict[str, str] = {}

    @property
    def name(self) -> str | None:
        """Id of the experiment, as in Lightning.

        Created, with the run, if `open` was not called.
        """
        return self.experiment_id

    @property
    def version(self) -> str | None:
        return self.run_id

    @property
    def experiment_id(self) -> str | None:
        """Id of the experiment; created, with the run, if `open` was not called."""
        self._ensure_run()
        return self._experiment_id

    @property
    def run_id(self) -> str | None:
        self._ensure_run()
        return self._run_id

    @property
    def tracking_uri(self) -> str | None:
        """The store: as given until the run exists, then absolute."""
        return self._tracking_uri

    @property
    def save_dir(self) -> str:
        """Local root folder, whatever the store.

        `ModelCheckpoint` writes to `<save_dir>/<experiment id>/<run id>/checkpoints`.
        """
        return self._files_dir or os.path.join(self._root_dir, "mlruns")

    @property
    def given_dir(self) -> str | None:
        return self._files_dir

    @property
    def log_dir(self) -> str | None:
        """Local folder of this run, `<save_dir>/<experiment id>/<run id>`.

        None until the run exists.
        """
        return (
            os.path.join(self.save_dir, str(self._experiment_id), str(self._run_id))
            if self._has_run
            else None
        )

    @property
    def experiment(self) -> MlflowClient:
        """An `MlflowClient` of the store; use it with `run_id`.

        Its calls wait for the store, unlike those of this class.
        """
        self._ensure_run()
        if self._live.client is None:
            self._live.client = store.client_of(str(self._tracking_uri))
        return self._live.client

    @property
    def measured_groups(self) -> Collection[str]:
        return self._monitor

    def watch_node(self, node: int) -> None:
        if not self._has_run:
            return
        file = store.sqlite_file(str(self._tracking_uri))
        if file is not None and not os.path.exists(file):
            raise ConfigError(
                f"The runs are recorded in {file}, a file that this machine"
                f" ({socket.gethostname()}) does not have. Workers on several machines need a"
                " server that all reach: start mlflow server --host 0.0.0.0 on one, and give"
                " MLFlowLogger(tracking_uri='http://ITS_NAME:5000') or MLFLOW_TRACKING_URI."
            )
        if "system" not in self._monitor:
            return
        self._live.node = node
        if node != 0:
            self._live.elsewhere = start_elsewhere(
                str(self._tracking_uri), str(self._run_id), node, self._environment
            )

    def leave_node(self) -> None:
        process = self._live.elsewhere
        self._live.node = self._live.elsewhere = None
        if process is not None and process.stdin is not None:
            with suppress(BrokenPipeError):
                process.stdin.close()  # it ends by itself
            process.terminate()
            process.wait()

    def where(self) -> str:
        """Return where to look at the run.

        The address of its page; of a local store with the command that serves it before it.
        """
        self._ensure_run()
        page = store.page_of_run(str(self._experiment_id), str(self._run_id))
        return store.look(str(self._tracking_uri), page)

    def where_compared(self, run_ids: Sequence[str]) -> str:
        """Return where to look at runs of this experiment side by side."""
        page = store.page_of_runs(str(self.experiment_id), run_ids)
        return store.look(str(self._tracking_uri), page)

    def child(
        self, run_name: str, tags: Mapping[str, str], run_id: str | None = None
    ) -> MLFlowLogger:
        """Return a logger whose `open` creates a run below this one, in the same experiment.

        Args:
            run_name: name of the new run.
            tags: put on the new run, beside user, source and git commit of this one.
            run_id: go on with this run below this one instead, whatever a checkpoint says.
        """
        child = MLFlowLogger(
            self._experiment_name,
            run_name,
            tags=self._context_tags | dict(tags) | {PARENT_TAG: self.run_id},
            tracking_uri=self._tracking_uri,
            save_dir=self._files_dir,
            log_model=self._log_model,
            prefix=self._prefix,
            run_id=run_id,
            monitor=self._monitor,
        )
        child._experiment_id = self._experiment_id
        return child

    def child_tagged(self, key: str, value: str) -> str | None:
        """Return the id of the newest run below this one that has a tag, None if none has."""
        experiment, run = str(self.experiment_id), str(self.run_id)
        return store.child_tagged(self.experiment, experiment, run, key, value)

    def repeat(self, run_id: str) -> None:
        """Log into the run of the same fit, which was ended before anything of it was saved.

        The fit begins from scratch; values that the run holds already are not sent again. Called on
        the driver, before `open`.
        """
        self._run_id = self._given_run_id = run_id
        self._is_repeated = True

    def sibling(self, run_name: str) -> MLFlowLogger:
        """Return a logger with the same settings whose `open` creates a run with another name.

        If the user has a run active then, the new one is nested below it.
        """
        sibling = MLFlowLogger(
            self._experiment_name,
            run_name,
            self._tracking_uri,
            self.tags,
            self._files_dir,
            self._log_model,
            self._prefix,
            self._artifact_location,
            monitor=self._monitor,
        )
        sibling._is_fresh = True
        return sibling

    def settle_children(self) -> None:
        """Wait until the store has all values of the runs below this one.

        Processes that were ended before they could send their values have left them in journals.
        Called on the driver.
        """
        uri = str(self._tracking_uri)
        try:
            ids = store.running_children(self.experiment, str(self.experiment_id), str(self.run_id))
            left = deliver_of(self.save_dir, uri, ids, CHILDREN_S) if ids else []
        except Exception as error:
            left = [str(error)]
        if left:
            warn(
                f"MLflow has not all that runs below {self._run_id} have logged. raylit sync"
                f" {self.save_dir} sends it later."
            )

    def close_children(self, status: str, run_ids: Collection[str] | None = None) -> None:
        """Set the end state of runs below this one whose processes were ended without one. Driver.

        Args:
            status: `success`, `failed` or `killed`.
            run_ids: those meant; None: all.
        """
        try:
            for run_id in store.running_children(
                self.experiment, str(self.experiment_id), str(self.run_id)
            ):
                if run_ids is None or run_id in run_ids:
                    make_outputs(self.experiment, run_id)
                    self.experiment.set_terminated(run_id, STATUSES.get(status, "FAILED"))
        except Exception as error:
            warn(f"MLflow may go on showing runs below {self._run_id} as running: {error}")

    def tell_of_child(self, run_id: str, error: str, text: str, artifact_file: str) -> None:
        """Keep why a run below this one failed: one line as a tag, the whole as an artifact."""
        try:
            self.experiment.set_tag(run_id, "raylit.error", error[: store.MAX_PARAM_LENGTH])
            self.experiment.log_text(run_id, text, artifact_file)
        except Exception as failure:
            warn(f"MLflow does not tell why the run {run_id} failed: {failure}")

    def keep_beside(
        self, run_id: str, folder: str, artifact_path: str, default_root_dir: str
    ) -> bool:
        """Keep the files of a local folder as artifacts of a run, which may have ended.

        Creates no run. Called on the driver; waits for the store. If it cannot be done, that is
        only warned of: the results are not to be lost for it.

        Args:
            run_id: of this store.
            folder: the files.
            artifact_path: where they go among the artifacts.
            default_root_dir: as in `open`.

        Returns:
            Whether they are there.
        """
        try:
            uri, artifact_root = store.find_store(
                self._tracking_uri, self._files_dir, os.path.abspath(default_root_dir)
            )
            store.connect(uri, artifact_root).log_artifacts(run_id, folder, artifact_path)
        except Exception as error:
            warn(
                f"{artifact_path} could not be kept with the run {run_id} of MLflow:"
                f" {type(error).__name__}: {error}"
            )
            return False
        return True

    def trials_below(
        self, run_id: str, default_root_dir: str
    ) -> list[tuple[dict[str, str], dict[str, float]]] | None:
        """Return parameters and metrics of the runs below a run of this store.

        None if there is no such run.

        Creates no run.
        """
        uri, artifact_root = store.find_store(
            self._tracking_uri, self._files_dir, os.path.abspath(default_root_dir)
        )
        client = store.connect(uri, artifact_root)
        return store.children_of(client, run_id)

    @staticmethod
    def end_tree(tracking_uri: str, run_id: str, status: str) -> None:
        """Set the end state of a run, and of all below it, whose process has died."""
        try:
            client = store.client_of(tracking_uri)
            run = client.get_run(run_id)
            left = store.running_children(client, run.info.experiment_id, run_id)
            if run.info.status == "RUNNING":
                left.append(run_id)
            for one in left:
                client.set_terminated(one, STATUSES[status])
        except Exception as error:
            warn(f"MLflow may go on showing the run {run_id} as running: {error}")

    def log_text(self, text: str, artifact_file: str) -> None:
        """Keep a text as an artifact of the run. Does not block.

        Args:
            text: what the file is to hold.
            artifact_file: its path among the artifacts, such as `config/config.yaml`.
        """
        # MLflow takes no others
        path = "/".join(part for part in artifact_file.split("/") if part not in ("", ".", ".."))
        self._log(Record("text", path or "_", without_secrets(text)))

    def log_figure(self, name: str, figure: Any, step: int) -> None:
        """Keep a matplotlib figure as `plots/<name>/step-<step>.png`; see `self.log_figure`."""
        with self._staged(f"step-{step:08}.png") as path:
            if path is not None:
                figure.savefig(path, bbox_inches="tight")
                self._log(
                    Record("file", f"plots/{store.clean_name(name)}/step-{step:08}.png", path)
                )

    def log_image(self, name: str, image: object, step: int) -> None:
        """Keep an image of a step, which MLflow shows in a row; see `self.log_image`."""
        with self._staged("image.png") as path:
            if path is not None:
                pictures.as_image(image).save(path)
                self._log(Record("image", name, path, step=step))

    def log_table(self, name: str, table: object, step: int) -> None:
        """Keep a table as `tables/<name>/step-<step>.json`; see `self.log_table`."""
        path = f"tables/{store.clean_name(name)}/step-{step:08}.json"
        self._log(Record("text", path, without_secrets(pictures.as_json(table))))
        self._tables.append({"path": path, "type": "table"})
        # MLflow shows what is named here as a table
        self._log(Record("tag", "mlflow.loggedArtifacts", json.dumps(self._tables[-MOST_TABLES:])))

    @contextmanager
    def _staged(self, name: str) -> Iterator[str | None]:
        """Give a place for a file that is to be sent; None if too many wait for that.

        If a file cannot be drawn, that is only warned of: the training is worth more than its
        pictures.
        """
        self._ensure_run()
        files = os.path.join(self._journals, "files")
        os.makedirs(files, exist_ok=True)
        if len(os.listdir(files)) >= MOST_FILES:
            warn_once(f"{MOST_FILES} files wait in {files} for MLflow; further ones are left out.")
            yield None
            return
        folder = tempfile.mkdtemp(dir=files)
        try:
            yield os.path.join(folder, name)
        except Exception as error:
            shutil.rmtree(folder, ignore_errors=True)
            warn(f"A picture could not be kept: {type(error).__name__}: {error}")

    def resume(self, run_id: str) -> None:
        """Go on with the run of a checkpoint.

        Driver, before `open`; a `run_id` given by the user, and their active run, come first.
        """
        self._resumed_run_id = run_id
        self._is_joining = False
        self._evaluated_step = 0
        self._chosen = None

    def join(self, run_id: str | None, step: int = 0) -> None:
        if run_id is None and self._has_fitted and self._owns_run:
            run_id = self._run_id  # an evaluation of what was fitted: its end stays as it is
        if run_id is not None:
            self.resume(run_id)
            self._is_joining = True
            self._evaluated_step = step

    def branch(self, step: int, *, is_newest: bool) -> None:
        self._chosen = (step, is_newest)

    def start_over(self) -> None:
        self._resumed_run_id = None
        self._evaluated_step = 0
        if self._is_joining:
            self._is_joining = False
            self._owns_run = True
            if not self._has_fitted:
                self._run_id = self._given_run_id
        self._chosen = None
        if self._has_fitted and self._run_id is not None:
            if self._run_id == self._given_run_id or not self._owns_run:
                warn(
                    f"The run {self._run_id} already holds a fit, and another one that begins from"
                    " scratch is logged into it: their values stand beside each other at the same"
                    " steps. Give each fit a run of its own, or go on with ckpt_path='last'."
                )
            else:
                info(
                    f"The run {self._run_id} holds a fit already; this one begins from scratch, in"
                    " a run of its own."
                )
                self._run_id = None
        self._has_fitted = True

    def open(self, *, default_root_dir: str, tags: Mapping[str, str]) -> None:
        self._stop_writing()
        if not self._owns_run:
            self._run_id = self._given_run_id  # the user may have another run by now
        # No database lies in a bucket
        self._root_dir = (
            os.getcwd() if is_url(default_root_dir) else os.path.abspath(default_root_dir)
        )
        self._start_run(tags)
        self._was_opened = True
        self._is_evaluating = self._is_joining

    def explain(self, reason: str, details: str = "") -> None:
        if not self._has_run or not self._owns_run:
            return
        self._log(Record("tag", REASON_TAG, without_secrets(reason)[:500]))
        if details:
            self.log_text(details, "errors/traceback.txt")

    def announce(self, status: str) -> None:
        if not (self._has_run and self._owns_run):
            return
        # Not by the process that sends: it may have to be started, for which Ray leaves no time
        # when a job is stopped.
        telling = threading.Thread(target=self._end_run, args=(status,), daemon=True)
        telling.start()
        telling.join(ANNOUNCE_S)

    def _end_run(self, status: str) -> None:
        try:
            with store.short_requests(), store.locked(str(self._tracking_uri)):
                self.experiment.set_terminated(str(self._run_id), STATUSES[status])
        except Exception as error:
            warn(f"MLflow may go on showing the run {self._run_id} as running: {error}")

    def close(self, status: str) -> None:
        self._is_evaluating = False
        if self._has_run and self._owns_run:
            self._log(Record("status", "", STATUSES.get(status, "FAILED")))
        if not self._stop_writing():
            warn(
                f"MLflow may go on showing the run {self._run_id} as running: its store did not"
                f" answer when it ended ({status})."
            )
        elif self._has_run and not self._owns_run:  # with the status this is done where it is ours
            try:
                with store.short_requests():
                    make_outputs(self.experiment, str(self._run_id))
            except Exception as error:
                warn(f"MLflow does not show checkpoints as outputs of {self._run_id}: {error}")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._prefix:
            metrics = {self._prefixed(key): value for key, value in metrics.items()}
        journal = self._live.journal or self._open_journal()
        if not step and self._is_evaluating and self._evaluated_step:
            step = self._evaluated_step
            metrics = {key: value for key, value in metrics.items() if key != "epoch"}  # as if new
        try:
            journal.log_metrics(metrics, step or 0)
        except Full as error:
            _tell_full(error)
        except (TypeError, ValueError, RuntimeError, OverflowError, struct.error):
            # Values are looked at one by one only where packing all has failed, which is rare
            self._log_what_fits(journal, metrics, step or 0)

    def _prefixed(self, name: str) -> str:
        return f"{self._prefix}{self.LOGGER_JOIN_CHAR}{name}" if self._prefix else name

    def _log_what_fits(self, journal: Journal, metrics: Mapping[str, object], step: float) -> None:
        """Append those of the metrics that are numbers, if the step is one that MLflow takes."""
        if not -(2**63) <= step < 2**63:
            warn_once(
                f"MLflow counts steps up to 2^63 - 1, so what was logged at step={step} was left"
                f" out: {', '.join(metrics)}.",
                key="mlflow step",
            )
            return
        numbers = {key: number_of(key, value, "MLflow") for key, value in metrics.items()}
        fitting = {key: number for key, number in numbers.items() if number is not None}
        if fitting:
            try:
                journal.log_metrics(fitting, int(step))
            except Full as error:
                _tell_full(error)

    def _log(self, *records: Record) -> None:
        """Append records that are rarer than metrics."""
        journal = self._live.journal or self._open_journal()
        try:
            for record in records:
                journal.log(record)
        except Full as error:
            _tell_full(error)

    def log_hyperparams(self, params: Mapping[str, object] | Namespace | None = None) -> None:
        if self._is_evaluating:
            return  # an evaluation is of what was fitted, whatever its module was made with
        flat = list(store.flatten(params or {}))
        self._log(*(Record("param", key, value[: store.MAX_PARAM_LENGTH]) for key, value in flat))
        too_long = {key: value for key, value in flat if len(value) > store.MAX_PARAM_LENGTH}
        if too_long:
            warn_once(
                f"MLflow keeps {store.MAX_PARAM_LENGTH} letters of a parameter, so"
                f" {', '.join(too_long)} was cut; the whole is in the artifacts, in"
                f" {LONG_PARAMS}.",
                key=f"mlflow long params {sorted(too_long)}",
            )
            self.log_text(json.dumps(too_long, indent=1), LONG_PARAMS)

    def log_settings(self, settings: Mapping[str, object]) -> None:
        self.log_hyperparams(settings)

    def log_summary(self, text: str) -> None:
        self.log_text(text, "model_summary.txt")

    def log_curves(self, history: Sequence[Mapping[str, float]]) -> None:
        if len(history) > 1:
            self._log(Record("curves", "plots/learning_curves.png", json.dumps(list(history))))

    def log_lr_search(self, found: LRSearch) -> None:
        self.log_figure("lr_find", found.plot(suggest=True), 0)

    def log_input(self, data: DataInput) -> None:
        self._data[data.context] = data
        parts = {
            "name": without_secrets(data.name),
            "digest": data.digest,
            "num_rows": data.num_rows,
            "columns": data.columns,
        }
        self._log(Record("input", data.context, json.dumps(parts)))

    def log_config(self, text: str) -> None:
        self.log_text(text, CONFIG)

    def config_arguments(self) -> dict[str, object]:
        """Return the arguments of a logger like this one, for the config of the fit."""
        own_tags = {
            key: str(value)
            for key, value in self.tags.items()
            if not key.startswith(("mlflow.", "raylit."))  # of this run's place in a sweep
        }
        return {
            "experiment_name": self._experiment_name,
            "run_name": self._run_name,
            "tracking_uri": self._given_uri,
            "tags": own_tags or None,
            "save_dir": self._given_dir,
            "log_model": self._log_model,
            "monitor": True if self._monitor == GROUPS else sorted(self._monitor),
            "prefix": self._prefix,
            "artifact_location": self._artifact_location,
        }

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        self._live.callbacks[id(checkpoint_callback)] = checkpoint_callback
        self._tell_models(checkpoint_callback)
        if self._log_model == "all" or (
            self._log_model and getattr(checkpoint_callback, "save_top_k", None) == -1
        ):
            self._uploader.add(checkpoint_callback, link=True)

    def _tell_models(self, callback: Checkpoint) -> None:
        """Have the store told which checkpoints there are."""
        step = getattr(callback, "_last_global_step_saved", 0)
        if written := getattr(callback, "_last_checkpoint_saved", ""):
            self._live.steps[written] = step  # it may have been written anew under its name
        newest = checkpoints_of(callback, {}, None)
        for one in newest["files"]:
            self._live.steps.setdefault(one["path"], step)
        kept = checkpoints_of(callback, self._live.steps, self._data.get("validation"))
        if kept["monitor"]:
            kept["monitor"] = self._prefixed(kept["monitor"])
        if kept["files"]:
            self._log(Record("models", kept["owner"], json.dumps(kept)))

    @property
    def wants_model(self) -> bool:
        return bool(self._log_model)

    def keep_model(self, module: LightningModule, inputs: tuple[object, ...], step: int) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = os.path.join(scratch, FINAL)
            form = save_final(module, inputs, folder)
            self._use_environment()
            with store.short_requests():
                upload_final(self.experiment, str(self._run_id), folder, step, form)

    def settle(self, timeout_s: float) -> None:
        if self._live.journal is not None:
            try:
                self._live.journal.sync()
            except OSError as error:
                warn_once(f"{self._live.journal.path} could not be written to the disk: {error}")

    def state_dict(self) -> StateDict:
        """Return the state with which a resumed fit logs each value into the run only once.

        Beside the run, it holds the time from which on values are replays, and the records that the
        store does not have yet, for a fit that goes on where this one's files are not.
        """
        if not self._has_run:
            return {}
        journal = self._live.journal
        tail = b"" if journal is None else journal.tail()
        if len(tail) > MAX_TAIL_BYTES:
            warn_once(
                f"MLflow has not answered for so long that {len(tail) / 1e6:.0f} MB wait for it."
                " Checkpoints do not carry them any more: a fit that goes on without the folder"
                f" {self._journals} would miss them."
            )
            tail = b""
        since_ms = self._since_ms if journal is None else journal.mark()
        return {"run_id": self._run_id, "since_ms": since_ms, "tail": tail}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._resumed = dict(state)
        run_id = state.get("run_id")
        if not self._has_run or run_id is None or run_id != self._run_id:
            return
        if self._live.journal is not None:
            self._adopt(self._live.journal)
        else:
            # Workers that were started again hold what the driver knew when the fit began
            self._since_ms = max(self._since_ms, state["since_ms"])

    def _adopt(self, journal: Journal) -> None:
        """Take over the records in the checkpoint, which the store did not have."""
        tail = self._resumed.get("tail", b"")
        if tail == self._live.adopted:  # else an old text would come behind a new one
            return
        self._live.adopted = tail
        try:
            journal.adopt(tail)
        except Full as error:
            _tell_full(error)
        except (ValueError, KeyError, struct.error) as error:
            warn(f"What the checkpoint holds for MLflow cannot be read: {error}")

    def finalize(self, status: str) -> None:
        if not self._has_run:
            return  # nothing was logged, as in `predict`
        best: dict[str, str] = max(
            map(best_tags, self._live.callbacks.values()), key=len, default={}
        )
        if best:
            self._log(*(Record("tag", key, value) for key, value in best.items()))
        for callback in self._live.callbacks.values():
            self._tell_models(callback)
        for callback in self._live.callbacks.values() if self._log_model else ():
            self._uploader.add(callback, link=False)
        if not self._was_opened:  # used without a Trainer: nobody calls `close`
            self._log(Record("status", "", STATUSES.get(status, "FAILED")))
        self._stop_writing()

    def _ensure_run(self) -> None:
        if not self._has_run:
            self._start_run({})

    def _start_run(self, tags: Mapping[str, str]) -> None:
        """Find the store and create the run, or go on with one."""
        uri, artifact_root = store.find_store(self._tracking_uri, self._files_dir, self._root_dir)
        client = store.connect(uri, artifact_root)
        self._tracking_uri = uri
        self._files_dir = self._files_dir or artifact_root
        self._context_tags = source_tags()
        deliver_left_behind(self.save_dir, uri)
        nested = {PARENT_TAG: store.active_run_id(uri)} if self._is_fresh else {}
        self._context_tags = {
            key: without_secrets(value) for key, value in self._context_tags.items()
        }
        all_tags = {
            key: without_secrets(str(value))
            for key, value in {**nested, **tags, **self.tags}.items()
            if value is not None
        }
        run = self._continue_run(client, all_tags)
        if run is None:
            if self._experiment_id is None:
                self._experiment_id = store.experiment_of_environment(
                    client, self._experiment_name
                ) or store.find_experiment(
                    client,
                    self._experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_NAME),
                    self._artifact_location,
                    artifact_root,
                )
            _end_gone(client, self._experiment_id)
            all_tags[PROCESS_TAG] = str(ProcessName.of_this())
            with _other_randomness():
                run = client.create_run(
                    self._experiment_id,
                    tags=self._context_tags | all_tags,
                    run_name=self._run_name or os.environ.get("MLFLOW_RUN_NAME"),
                )
        self._run_id = run.info.run_id
        self._experiment_id = run.info.experiment_id
        self._has_run = True
        self._since_ms = int(time.time() * 1000)
        if self._origin is not None:
            self._link_to_origin(client, self._origin)
            self._origin = None
        if self._is_repeated:
            self._since_ms = 0
        elif self._run_id == self._resumed_run_id and not self._is_joining:
            # An evaluation repeats nothing: on other data it has other values at the same step.
            # 0 for a checkpoint that does not tell: all that is there may be logged again
            known = self._resumed.get("run_id") == self._run_id
            self._since_ms = self._resumed["since_ms"] if known else 0
        self._live = _Live(client)

    def _continue_run(self, client: MlflowClient, tags: dict[str, str]) -> MlflowRun | None:
        """Return the run to go on with, made RUNNING again unless it is the user's own.

        None if one has to be created.
        """
        from mlflow.entities import RunTag
        from mlflow.exceptions import MlflowException

        active = store.active_run_id(str(self._tracking_uri))
        run_id = (
            self._run_id
            or (None if self._is_fresh or PARENT_TAG in self.tags else active)
            or self._resumed_run_id
        )
        joins = self._is_joining and run_id == self._resumed_run_id
        self._owns_run = run_id is None or (run_id != active and not joins)
        self._origin = None
        if run_id is None:
            return None
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            is_wanted = run_id != self._resumed_run_id and not self._is_repeated
            if error.error_code != "RESOURCE_DOES_NOT_EXIST" or is_wanted:
                raise
            warn(
                f"The run {run_id} {'of before' if self._is_repeated else 'of the checkpoint'} is"
                f" not in {without_secrets(client.tracking_uri)}, so a new one is created."
            )
            return None
        if run.info.lifecycle_stage == "deleted":
            if self._is_repeated:
                return None
            if run_id != self._resumed_run_id:
                raise ConfigError(
                    f"The run {run_id} was deleted, so nothing can be logged to it. Restore it with"
                    f" `mlflow runs restore --run-id {run_id}`, or give no run_id."
                )
            warn(f"The run {run_id} of the checkpoint was deleted, so a new one is created.")
            return None
        if self._is_repeated or run_id == self._resumed_run_id:
            deliver_left_behind(self.save_dir, client.tracking_uri, run_id, wait_s=LOCK_S)
        if run_id == self._resumed_run_id and self._leaves(client.get_run(run_id)):
            self._origin = run
            return None
        if joins:
            return run
        if self._owns_run:
            before = run.data.tags.get(ATTEMPT_TAG, "1")
            attempt = int(before) + 1 if before.isdigit() else 2
            own = {PROCESS_TAG: str(ProcessName.of_this()), REASON_TAG: "", ATTEMPT_TAG: attempt}
            tags = tags | {key: str(value) for key, value in own.items()}
        else:
            info(f"Logging into your active MLflow run {run_id}.")
        # The process first: else another start would find the run running, and its process gone
        with store.locked(client.tracking_uri):
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            if self._owns_run:
                client.update_run(run_id, status="RUNNING")
        return run

    def _leaves(self, run: MlflowRun) -> bool:
        """Tell whether a fit that goes on from the chosen checkpoint is another than the run's.

        It is if the run went on from there, and came to an end or to a newer checkpoint.
        """
        if self._chosen is None or not self._owns_run or self._given_run_id == run.info.run_id:
            return False
        step, is_newest = self._chosen
        known = self._resumed.get("run_id") == run.info.run_id
        since_ms = self._resumed["since_ms"] if known else 0
        # only this form tells the step
        newest = {one.key: one for one in run.to_proto().data.metrics}
        # Rows at the steps of the fit have an `epoch`. Others may stand at any x: those of
        # ThroughputMonitor at batches of an evaluation, system metrics at seconds.
        epoch = newest.get(store.clean_name(self._prefixed("epoch")))
        telling = [epoch] if epoch is not None else store.without_system(newest.values())
        went_on = any(one.timestamp > since_ms and one.step > step for one in telling)
        return went_on and (not is_newest or run.info.status == "FINISHED")

    def _link_to_origin(self, client: MlflowClient, origin: MlflowRun) -> None:
        """Let a run that branches off another say so, and that one too."""
        assert self._chosen is not None
        step, _ = self._chosen
        info(
            f"The checkpoint is an older one of the run {origin.info.run_id}, which went on from"
            f" there. This fit goes on from step {step} in a run of its own, {self._run_id}."
        )
        client.set_tag(str(self._run_id), "raylit.branched_from", origin.info.run_id)
        client.set_tag(str(self._run_id), "raylit.branched_at_step", step)
        branches = [*origin.data.tags.get("raylit.branches", "").split(), str(self._run_id)]
        client.set_tag(origin.info.run_id, "raylit.branches", " ".join(branches[-200:]))

    @property
    def _run_store(self) -> RunStore:
        self._ensure_run()
        if self._live.run_store is None:
            self._use_environment()
            # Here and not on a thread: a package imported by two threads at once can end half-made.
            import mlflow  # noqa: F401

            self._live.run_store = RunStore(str(self._tracking_uri), str(self._run_id))
        return self._live.run_store

    def _use_environment(self) -> None:
        """Set the variables for the store, in a process that writes to it itself.

        A runtime environment would have them in all, and Ray shows and logs it.
        """
        for key, value in self._environment.items():
            os.environ.setdefault(key, value)

    @property
    def _journals(self) -> str:
        return os.path.join(self.save_dir, FOLDER)

    def _open_journal(self) -> Journal:
        """Begin a journal, and have it sent."""
        self._ensure_run()
        uri = str(self._tracking_uri)
        process = str(ProcessName.of_this())
        header = Header(str(self._run_id), without_secrets(uri), self._since_ms, process)
        try:
            journal = Journal(self._journals, header)
        except OSError as error:
            folder = os.path.join(tempfile.gettempdir(), f"raylit-{os.getuid()}", FOLDER)
            warn_once(
                f"No journal can be kept in {self._journals} ({error}); it lies in {folder}. Should"
                f" this process be killed, raylit sync {folder} sends what MLflow does not have."
            )
            journal = Journal(folder, header)
        self._live.journal = journal
        if self._resumed.get("run_id") == self._run_id:
            self._adopt(journal)
        self._live.sender = Sender(journal, uri, self.save_dir, self._environment, self._live.node)
        atexit.register(self._stop_writing)  # a script that forgot to finalize
        return journal

    @property
    def _uploader(self) -> CheckpointUploader:
        if self._live.uploader is None:
            self._live.uploader = CheckpointUploader(self._run_store.upload, str(self._run_id))
        return self._live.uploader

    def _stop_writing(self) -> bool:
        """Wait until the store has all that was logged.

        Returns:
            Whether it has; if not, the journal is kept.
        """
        journal = self._live.journal
        sender = self._live.sender
        self._live.journal = self._live.sender = None
        is_sent = True
        if journal is not None and sender is not None:
            atexit.unregister(self._stop_writing)
            is_sent = self._finish(journal, sender)
        if self._live.uploader is not None:
            self._live.uploader.close()
        return is_sent

    def _finish(self, journal: Journal, sender: Sender) -> bool:
        """Send the rest of the journal: by the process that sends it already, else by this one."""
        try:
            sender.stop()
            if not sender.is_started:
                self._use_environment()
                with suppress(Exception), store.short_requests():
                    deliver(journal.path, str(self._tracking_uri), wait_s=0)
            if os.path.exists(journal.path):
                sender.finish()
        finally:
            journal.close()
        if os.path.exists(journal.path):
            warn(
                f"MLflow at {without_secrets(str(self._tracking_uri))} has not taken all that was"
                f" logged. The rest is kept in {journal.path}: the next run with this save_dir"
                f" sends it, or raylit sync {self.save_dir}."
            )
            return False
        return True

    def __getstate__(self) -> dict[str, object]:
        own = {key: os.environ[key] for key in os.environ if key.startswith("MLFLOW_TRACKING_")}
        return self.__dict__ | {"_live": None, "_environment": self._environment | own}

    def __setstate__(self, state: StateDict) -> None:
        self.__dict__.update(state, _live=_Live())


def _end_gone(client: MlflowClient, experiment_id: str) -> None:
    """Set the end of runs that nobody could set: their processes were killed."""
    try:
        num = runs.end_gone(client, [experiment_id])
    except Exception as error:
        warn(f"MLflow may go on showing runs as running whose process is gone: {error}")
        return
    if num:
        info(f"{num} runs of this experiment were marked as KILLED: their process is gone.")


@contextmanager
def _other_randomness() -> Iterator[None]:
    """Context in which random names are not those that `seed_everything` makes alike for all runs.

    Afterwards nothing was drawn.
    """
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def _tell_full(error: Full) -> None:
    warn_once(
        f"What is logged cannot be kept for MLflow ({error}) and is lost until there is room."
        " Training goes on. Free some of the disk.",
        key="mlflow journal full",
    )
