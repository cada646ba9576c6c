"""TensorBoardLogger.

Metrics, hyperparameters and the model's graph as event files for TensorBoard.
"""

from __future__ import annotations

import copy
import html
import importlib.util
import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from raylit.core.logger import Logger
from raylit.core.module import being_traced
from raylit.errors import ConfigError, MissingPackageError
from raylit.loggers import pictures
from raylit.loggers.files import (
    NAME_HPARAMS_FILE,
    NO_HPARAMS,
    claim_version,
    hparams_as_yaml,
    last_steps,
)
from raylit.runtime import messages
from raylit.runtime.aliases import Batch, Experiment, StateDict
from raylit.runtime.messages import rank_zero_only, warn, warn_once
from raylit.runtime.storage import asking, file_system, fresh, local, write_text

if TYPE_CHECKING:
    from raylit.core.module import LightningModule

STEP = re.compile(r"step-(\d+)\.\w+")  # the file of a text that comes again and again


class TensorBoardLogger(Logger):
    """Write event files and `hparams.yaml` to `<save_dir>/<name>/version_<N>`.

    Look at them with `tensorboard --logdir <save_dir>`.

    Files, tags and steps are those of Lightning's TensorBoardLogger. Values that come again because
    processes died and went on from a checkpoint stand there once, as long as the package
    tensorboard is installed (tensorboardX alone cannot read its own files), and their steps go up:
    at an x that begins anew in each epoch, a value that comes again looks like any other.

    Args:
        save_dir: folder of all experiments, or an fsspec URL.
        name: folder of this experiment; None or "" leaves this level out.
        version: folder of this run: a number N gives `version_N`, a string is taken as it is, None
            takes the next free number.
        log_graph: whether to record the model's graph, traced with its `example_input_array`.
        default_hp_metric: whether hyperparameters that come without a metric get a placeholder
            `hp_metric`, without which TensorBoard does not show them.
        prefix: put before the names of metrics, joined by "-".
        sub_dir: folder for the files below that of the run.
        comment: handed to `torch.utils.tensorboard.SummaryWriter`, as are those that follow.
        purge_step: first step that is logged again after a crash.
        max_queue: values that wait to be written, at most.
        flush_secs: seconds after which they are written.
        filename_suffix: put behind the names of the event files.
        kwargs: further arguments of the SummaryWriter.

    Attributes:
        hparams: the hyperparameters logged so far.

    Raises:
        MissingPackageError: neither tensorboard nor tensorboardX is installed.

    Example:
        >>> trainer = Trainer(
        ...     logger=TensorBoardLogger("logs", name="digits")
        ... )  # logs/digits/version_0/events.out.tfevents...
    """

    LOGGER_JOIN_CHAR = "-"
    NAME_HPARAMS_FILE = NAME_HPARAMS_FILE

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        *,
        comment: str = "",
        purge_step: int | None = None,
        max_queue: int = 10,
        flush_secs: int = 120,
        filename_suffix: str = "",
        **kwargs: object,
    ) -> None:
        if not _has("tensorboard") and not _has("tensorboardX"):
            raise MissingPackageError("tensorboard", "TensorBoardLogger", "tensorboard")
        if log_graph and not _has("tensorboard"):
            warn(
                "TensorBoardLogger(log_graph=True) needs the package tensorboard; with tensorboardX"
                " alone no graph is recorded."
            )
        self.hparams: dict[str, Any] = {}
        self._save_dir = local(save_dir)
        self._name = name or ""
        self._version = version
        self._log_graph = log_graph and _has("tensorboard")
        self._default_hp_metric = default_hp_metric
        self._prefix = prefix
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)
        self._kwargs = {
            "comment": comment,
            "purge_step": purge_step,
            "max_queue": max_queue,
            "flush_secs": flush_secs,
            "filename_suffix": filename_suffix,
            **kwargs,
        }
        self._files_before: set[str] = set()
        self._restarted = False
        # Of a tag, in files that processes of this run wrote before they died
        self._last_step: dict[str, float] = {}
        self._experiment: Experiment = None
        self._has_hparams = False  # whether their file is known to be there

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> int | str:
        if self._version is None:
            self._version = claim_version(_expanded(self.root_dir))
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
    def sub_dir(self) -> str | None:
        """Folder for the files below that of the run, or None."""
        return self._sub_dir

    @property
    def root_dir(self) -> str:
        """Folder of the experiment, `<save_dir>/<name>`."""
        return os.path.join(self.save_dir, self.name or "")

    @property
    def log_dir(self) -> str:
        version = self.version
        folder = version if isinstance(version, str) else f"version_{version}"
        return _expanded(os.path.join(self.root_dir, folder, *filter(None, [self._sub_dir])))

    @property
    def experiment(self) -> Experiment:
        """The SummaryWriter, for images, histograms and all else.

        It is made with its folder on first use; on ranks other than 0 it does nothing.
        """
        if messages.rank() != 0:
            return _Nothing()
        if self._experiment is None:
            if self._restarted:
                # The files of dead processes of this run alone: a fit before it may have more steps
                self._last_step = last_steps(_logged(self.log_dir, self._files_before))
            self._experiment = _library().SummaryWriter(log_dir=self.log_dir, **self._kwargs)
        return self._experiment

    def open(self, *, default_root_dir: str, tags: Mapping[str, str]) -> None:
        if "://" not in self._save_dir:  # workers may have another working directory
            self._save_dir = os.path.abspath(_expanded(self._save_dir))
        self._close_writer()  # a second fit with this logger goes on in files of its own
        self._restarted = False
        self._last_step = {}
        self._files_before = set(_event_files(self.log_dir))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        with self._unless_disk_fails():
            writer = self.experiment
            for key, value in metrics.items():
                tag = f"{self._prefix}{self.LOGGER_JOIN_CHAR}{key}" if self._prefix else key
                if isinstance(value, dict):
                    values = {
                        name: one
                        for name, one in value.items()
                        if self._is_new(f"{tag}/{name}", step)
                    }
                    if values:
                        writer.add_scalars(tag, values, step)
                elif self._is_new(tag, step):
                    writer.add_scalar(tag, _number(tag, value), step)

    @rank_zero_only
    def log_hyperparams(
        self,
        params: Mapping[str, object] | Namespace | None = None,
        metrics: object = None,
        step: int | None = None,
    ) -> None:
        """Record hyperparameters.

        Args:
            params: nested mappings, namespaces and dataclasses are allowed; their names are joined
                by "/".
            metrics: name to number of what the run is to be compared by; a number alone is taken
                for `hp_metric`.
            step: x-axis of `metrics`.
        """
        given = vars(params) if isinstance(params, Namespace) else dict(params or {})
        self.hparams.update(given)
        if metrics is None:
            metrics = {"hp_metric": -1} if self._default_hp_metric else {}
        elif not isinstance(metrics, dict):
            metrics = {"hp_metric": metrics}
        if not metrics:
            return
        self.log_metrics(metrics, step)
        with self._unless_disk_fails():
            writer = self.experiment._get_file_writer()
            flat = {key: _plain(value) for key, value in _flatten(given)}
            for summary in _library().summary.hparams(flat, metrics):
                if self._is_new(summary.value[0].tag, step):
                    writer.add_summary(summary, step)

    @rank_zero_only
    def log_graph(self, model: LightningModule, input_array: Batch = None) -> None:
        if not self._log_graph:
            return
        batch = model.example_input_array if input_array is None else input_array
        if not isinstance(batch, (torch.Tensor, tuple)):
            why = (
                "it is not set"
                if batch is None
                else (
                    f"it is a {type(batch).__name__}, not a tensor or a tuple of forward's"
                    " arguments"
                )
            )
            warn(
                "TensorBoardLogger(log_graph=True) passes example_input_array of"
                f" {type(model).__name__} through the model, but {why}."
            )
            return
        batch = model.on_before_batch_transfer(batch, 0)
        batch = model.transfer_batch_to_device(batch, model.device, 0)
        batch = model.on_after_batch_transfer(batch, 0)
        with self._unless_disk_fails(), being_traced():
            self.experiment.add_graph(model, batch)

    @rank_zero_only
    def log_figure(self, name: str, figure: object, step: int) -> None:
        """Show a matplotlib figure under Images; see `self.log_figure`."""
        if self._is_new(name, step):
            with self._unless_it_fails(name):
                self.experiment.add_figure(name, figure, step, close=False)

    @rank_zero_only
    def log_image(self, name: str, image: object, step: int) -> None:
        """Show an image; see `self.log_image`."""
        if self._is_new(name, step):
            with self._unless_it_fails(name):
                array = np.asarray(pictures.as_image(image).convert("RGBA"))
                self.experiment.add_image(name, array, step, dataformats="HWC")

    @rank_zero_only
    def log_table(self, name: str, table: object, step: int) -> None:
        """Show a table under Text; see `self.log_table`."""
        self._log_text(name, pictures.as_markdown(table), step)

    @rank_zero_only
    def log_text(self, text: str, artifact_file: str) -> None:
        """Show a text under its path; see `self.log_text`."""
        folder, _, last = artifact_file.rpartition("/")
        step = STEP.fullmatch(last)
        if step is None:
            self._log_text(artifact_file, text, 0)
        else:  # a row of texts
            self._log_text(folder, f"<pre>{html.escape(text)}</pre>", int(step[1]))

    def _log_text(self, name: str, text: str, step: int) -> None:
        if self._is_new(f"{name}/text_summary", step):
            with self._unless_it_fails(name):
                self.experiment.add_text(name, text, step)

    @contextmanager
    def _unless_it_fails(self, name: str) -> Iterator[None]:
        """Context in which a picture that fails is a warning: training is worth more."""
        with self._unless_disk_fails():
            try:
                yield
            except OSError:
                raise
            except Exception as error:
                warn(f"{name} could not be drawn: {type(error).__name__}: {error}")

    @rank_zero_only
    def save(self) -> None:
        with self._unless_disk_fails():
            # Elsewhere each flush is an upload; the writer's own thread does it every `flush_secs`
            if "://" not in self._save_dir:
                self.experiment.flush()
            self._write_hparams()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._experiment is not None:
            with self._unless_disk_fails():
                self._write_hparams()
            self._close_writer()

    def _write_hparams(self) -> None:
        """Write `hparams.yaml` unless it is there.

        A run has one set of hyperparameters, those of its start.
        """
        if self._has_hparams:
            return
        path = os.path.join(self.log_dir, self.NAME_HPARAMS_FILE)
        fs, inner = file_system(path)
        with asking():
            is_there = fs.isfile(inner) and fs.cat_file(inner) != NO_HPARAMS
        if not is_there:
            write_text(path, hparams_as_yaml(self.hparams))
        self._has_hparams = True

    def _is_new(self, tag: str, step: int | None) -> bool:
        """Tell whether a value is new: a resumed fit replays the steps after its checkpoint."""
        return not self._last_step or (step or 0) > self._last_step.get(tag, -1)

    def _close_writer(self) -> None:
        writer = self._experiment
        self._experiment = None
        if writer is not None:
            with self._unless_disk_fails():
                writer.close()

    @contextmanager
    def _unless_disk_fails(self) -> Iterator[None]:
        """Context in which a disk that cannot be written does not end the training.

        Values that could not be written are lost, with a warning.
        """
        try:
            yield
        except OSError as error:
            self._experiment = None  # its thread has ended; the next value begins a new file
            warn_once(
                f"Could not write event files to {self.log_dir}: {error}. Training goes on; values"
                " logged meanwhile are lost."
            )

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_experiment": None}

    def __setstate__(self, state: StateDict) -> None:
        self.__dict__.update(state, _restarted=True)


class _Nothing:
    """Stands for the SummaryWriter on ranks that write nothing.

    Whatever is called on it does nothing.
    """

    def __getattr__(self, name: str) -> Callable[..., _Nothing]:
        return self._do_nothing

    def _do_nothing(self, *args: object, **kwargs: object) -> _Nothing:
        return self


def _has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _library() -> Any:
    """Return torch's SummaryWriter and its kin if it can be used, else those of tensorboardX."""
    if _has("tensorboard"):
        import torch.utils.tensorboard.summary

        return torch.utils.tensorboard
    import tensorboardX.summary

    return tensorboardX


def _expanded(path: str) -> str:
    return os.path.expanduser(os.path.expandvars(path))


def _event_files(folder: str) -> list[str]:
    """Return the event files of a folder, and of those below it that `add_scalars` makes."""
    fs, path = fresh(folder)
    return [
        fs.unstrip_protocol(file) if "://" in folder else file
        for files in ("events.out.tfevents.*", "*/events.out.tfevents.*")
        for file in fs.glob(f"{path}/{files}")
    ]


def _logged(folder: str, files_before: set[str]) -> Iterator[tuple[str, int]]:
    """Yield tag and step of the values in the event files of `folder` but `files_before`.

    A value of `add_scalars`, which is in a folder `TAG_NAME` under TAG, has the tag `TAG/NAME`.
    """
    if not _has("tensorboard"):
        return
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    for file in sorted(set(_event_files(folder)) - files_before):
        inner = os.path.basename(os.path.dirname(file))
        is_inner = inner != os.path.basename(folder.rstrip("/"))
        for event in EventFileLoader(file).Load():
            for value in event.summary.value:
                tag = value.tag
                if is_inner:
                    tag = f"{tag}/{inner.removeprefix(tag.replace('/', '_') + '_')}"
                yield tag, event.step


def _number(tag: str, value: object) -> float:
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (int, float)):
        raise ConfigError(
            f"TensorBoardLogger cannot log {tag} = {value!r} ({type(value).__name__}). Log a"
            " number, or a dict of numbers."
        )
    return value


def _flatten(params: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield `model/lr` and the like with their values; a list of mappings gives `layers/0/size`."""
    for key, value in params.items():
        name = f"{prefix}{key}"
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        elif isinstance(value, Namespace):
            value = vars(value)
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{name}/")
        elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            for index, item in enumerate(value):
                yield from _flatten(item, f"{name}/{index}/")
        else:
            yield name, value


def _plain(value: Any) -> object:
    """Return a value in the form that TensorBoard takes for a hyperparameter.

    Numbers, words and tensors with up to one dimension stay as they are; all else becomes text.
    """
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if type(value) in (bool, int, float, str) or (type(value) is torch.Tensor and value.ndim <= 1):
        return value
    return str(value)
