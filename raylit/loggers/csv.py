"""CSVLogger: metrics in `metrics.csv` and hyperparameters in `hparams.yaml`, in a folder per run.

Needs no package and no server.
"""

from __future__ import annotations

import copy
import csv
import io
import itertools
import math
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from raylit.core.logger import Logger
from raylit.loggers.artifacts import KeepsFiles
from raylit.loggers.files import NAME_HPARAMS_FILE, claim_version, hparams_as_yaml, last_steps
from raylit.loggers.mirror import Mirror, downloaded_if_there
from raylit.runtime.aliases import StateDict
from raylit.runtime.kinds import check_kinds
from raylit.runtime.messages import warn, warn_once
from raylit.runtime.storage import fresh, is_url, local

if TYPE_CHECKING:
    from raylit.core.callback import Checkpoint


class CSVLogger(KeepsFiles, Logger):
    """Write metrics and hyperparameters as plain files to `<save_dir>/<name>/version_<N>`.

    Figures, images, tables and texts go beside them: `plots/`, `images/`, `tables/`. The files of
    metrics and hyperparameters are those of Lightning's CSVLogger, but rows are appended, never
    written twice. A `metrics.csv` that another logger left in the folder (an explicit `version`) is
    deleted, with a warning; that of a run which goes on is continued: from a checkpoint of it,
    after its processes died, or in a second fit with the same logger.

    Args:
        save_dir: folder of all experiments, or an fsspec URL, to which the files are copied, from a
            thread, every 5 seconds at most.
        name: folder of this experiment; None or "" leaves this level out.
        version: folder of this run: a number N gives `version_N`, a string is taken as it is, None
            takes the next free number.
        prefix: put before the names of metrics, joined by "-".
        flush_logs_every_n_steps: rows are written when `(step + 1) % flush_logs_every_n_steps ==
            0`, and whenever `save` is called.

    Example:
        >>> trainer = Trainer(
        ...     logger=CSVLogger("logs", name="digits")
        ... )  # logs/digits/version_0/metrics.csv
    """

    LOGGER_JOIN_CHAR = "-"

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        check_kinds(CSVLogger.__init__, locals())
        self._save_dir = local(save_dir)
        self._name = name or ""
        self._version = version
        self._prefix = prefix
        self._flush_logs_every_n_steps = flush_logs_every_n_steps
        self._num_rows_before = 0
        self._restarted = self._was_opened = self._begins_anew = False
        self._experiment: ExperimentWriter | None = None
        self._mirror: Mirror | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> int | str:
        if self._version is None:
            self._version = claim_version(self.root_dir)
        return self._version

    def in_version(self, version: str) -> Self:
        """Return a logger like this one, with a version of its own: a name, or a path of some."""
        other = copy.copy(self)
        other._version = version
        return other

    @property
    def save_dir(self) -> str:
        return self._save_dir

    @property
    def root_dir(self) -> str:
        """Folder of the experiment, `<save_dir>/<name>`."""
        return os.path.join(self.save_dir, self.name or "")

    @property
    def log_dir(self) -> str:
        version = self.version
        return os.path.join(
            self.root_dir, version if isinstance(version, str) else f"version_{version}"
        )

    @property
    def experiment(self) -> ExperimentWriter:
        """The writer of the files; made, with its folder, on first use."""
        if self._experiment is None:
            if not self._was_opened:  # used without a Trainer
                self._was_opened = True
                self._delete_what_others_left()
            if is_url(self.save_dir):
                self._mirror = Mirror(self.log_dir, ExperimentWriter.NAME_METRICS_FILE)
            folder = self._mirror.folder if self._mirror is not None else self.log_dir
            self._experiment = ExperimentWriter(
                folder, num_rows_before=self._num_rows_before if self._restarted else None
            )
        return self._experiment

    def start_over(self) -> None:
        self._begins_anew = not self._was_opened

    def open(self, *, default_root_dir: str, tags: Mapping[str, str]) -> None:
        if not is_url(self.save_dir):
            # Workers may have another working directory
            self._save_dir = os.path.abspath(self._save_dir)
            os.makedirs(self.log_dir, exist_ok=True)
        if self._begins_anew:
            self._delete_what_others_left()
        self._begins_anew = self._restarted = False
        if self._experiment is not None:  # a second fit with this logger: goes on in the same files
            self.finalize("success")
        with downloaded_if_there(
            os.path.join(self.log_dir, ExperimentWriter.NAME_METRICS_FILE)
        ) as file:
            self._num_rows_before = sum(1 for _ in _read_rows(file))
        if self._num_rows_before and not self._was_opened:
            warn(
                f"{self.log_dir} already holds metrics of a run; they are kept and new rows go"
                " below them."
            )
        self._was_opened = True

    @property
    def files_folder(self) -> str:
        return self.experiment.log_dir

    def _delete_what_others_left(self) -> None:
        path = os.path.join(self.log_dir, ExperimentWriter.NAME_METRICS_FILE)
        fs, inner = fresh(path)
        if not fs.exists(inner):
            return
        warn(
            f"Experiment logs directory {self.log_dir} exists and is not empty: the"
            f" {ExperimentWriter.NAME_METRICS_FILE} of another run is deleted. Give another"
            " version, or none, to keep it."
        )
        fs.rm(inner)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._prefix:
            metrics = {
                f"{self._prefix}{self.LOGGER_JOIN_CHAR}{key}": value
                for key, value in metrics.items()
            }
        step = len(self.experiment.metrics) if step is None else step
        self.experiment.log_metrics(metrics, step)
        if (step + 1) % self._flush_logs_every_n_steps == 0:
            self.save()

    def log_hyperparams(self, params: Mapping[str, object] | Namespace | None = None) -> None:
        self.experiment.log_hparams(
            vars(params) if isinstance(params, Namespace) else dict(params or {})
        )

    def save(self) -> None:
        self.experiment.save()
        if self._mirror is not None:
            self._mirror.copy()

    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            self.save()
        if self._mirror is not None:
            self._mirror.close()
            self._experiment = self._mirror = None

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        if self._mirror is not None:
            self.save()
            self._mirror.copy(soon=True)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_experiment": None, "_mirror": None}

    def __setstate__(self, state: StateDict) -> None:
        self.__dict__.update(state, _restarted=True)


class ExperimentWriter:
    """The two files of one run: `metrics.csv`, one row per call, and `hparams.yaml`.

    Args:
        log_dir: folder of the run; made if missing.
        num_rows_before: number of rows the file had when the run began. What stands below them was
            written by processes of this run that died since; when it comes again, replayed from a
            checkpoint, it is left out, unless its steps do not tell (see `last_steps`). None:
            nothing was written by others.
    """

    NAME_METRICS_FILE = "metrics.csv"
    NAME_HPARAMS_FILE = NAME_HPARAMS_FILE

    def __init__(self, log_dir: str, num_rows_before: int | None = None) -> None:
        self.log_dir = log_dir
        self.metrics_file_path = os.path.join(log_dir, self.NAME_METRICS_FILE)
        self.metrics: list[dict[str, Any]] = []
        self.metrics_keys: list[str] = []
        self.hparams: dict[str, Any] = {}
        self._last_step: dict[str, float] = {}
        os.makedirs(log_dir, exist_ok=True)
        if os.path.isfile(self.metrics_file_path):
            _cut_torn_row(self.metrics_file_path)
            with open(self.metrics_file_path, newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])
        if num_rows_before is not None:
            # By the steps of each name: rows of training and of validation come back apart
            rows = itertools.islice(_read_rows(self.metrics_file_path), num_rows_before, None)
            self._last_step = last_steps(
                (key, float(row["step"])) for row in rows for key in row if row[key]
            )

    def log_metrics(self, metrics_dict: Mapping[str, object], step: int | None = None) -> None:
        """Keep one row for the next `save`."""
        step = len(self.metrics) if step is None else step
        # 'epoch' stands in rows of training and of validation
        telling = metrics_dict.keys() - {"epoch"} or metrics_dict.keys()
        again = {key for key in telling if step <= self._last_step.get(key, -math.inf)}
        if not telling or again != telling:
            row = {
                key: value.item() if hasattr(value, "item") else value
                for key, value in metrics_dict.items()
                if key not in again
            }
            self.metrics.append(row | {"step": step})

    def log_hparams(self, params: Mapping[str, object]) -> None:
        """Add hyperparameters and write all of them.

        Values that YAML cannot hold are left out with a warning.
        """
        self.hparams.update(params)
        with open(
            os.path.join(self.log_dir, self.NAME_HPARAMS_FILE), "w", newline="", encoding="utf-8"
        ) as file:
            file.write(hparams_as_yaml(self.hparams))

    def save(self) -> None:
        """Append the rows kept so far.

        Where that fails they are kept for the next time: a full disk does not end the training.
        """
        if not self.metrics:
            return
        try:
            self._write()
        except OSError as error:
            warn_once(
                f"Could not write {self.metrics_file_path}: {error}. Training goes on; its rows are"
                " kept and tried again."
            )
        else:
            self.metrics = []

    def _write(self) -> None:
        path = self.metrics_file_path
        keys = sorted({*self.metrics_keys, *itertools.chain.from_iterable(self.metrics)})
        if keys != self.metrics_keys or not os.path.isfile(path):
            with open(path + ".tmp", "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, keys)
                writer.writeheader()
                writer.writerows(itertools.chain(_read_rows(path), self.metrics))
            # A new column: readers see the old file or the new one whole
            os.replace(path + ".tmp", path)
            self.metrics_keys = keys
            return
        text = io.StringIO(newline="")
        csv.writer(text).writerows([row.get(key, "") for key in keys] for row in self.metrics)
        size = os.path.getsize(path)
        try:
            with open(path, "ab") as file:
                file.write(text.getvalue().encode())
        except OSError:
            # Half of a row would stand before the same row, when it is tried again
            os.truncate(path, size)
            raise


def _read_rows(path: str) -> Iterator[dict[str, str]]:
    if os.path.isfile(path):
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


def _cut_torn_row(path: str) -> None:
    """Drop a last row that has no end: a process was killed while it wrote it."""
    with open(path, "rb+") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
