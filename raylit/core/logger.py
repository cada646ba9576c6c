"""The contract of a logger.

A logger lives twice. On the driver, the process in which `Trainer.fit` was called, `open` is called
once before any worker starts and `close` once after the last has ended, however it ended: there a
run is created and its status set; `announce` comes before, if the driver is told to end while
workers run. In between the logger travels, pickled, to rank 0 of the workers (the same process and
object when `num_workers=0`), where the loop calls `log_metrics`, `log_hyperparams`, `save` and
`finalize`. When workers are restarted the pickled logger starts anew there, so all that must
survive has to be set by `open`.

`log_metrics` is called from the training thread: it must not block on a network or a database, and
after `open` has succeeded nothing here may stop the training. `open` should raise at once where the
store cannot be reached. Ranks other than 0 call none of it.

To write one, subclass `Logger`, implement `name`, `version`, `log_metrics` and `log_hyperparams`,
and run `raylit.testing.LoggerConformance` against it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from raylit.runtime.aliases import ForwardInput, StateDict
from raylit.runtime.messages import warn_once

if TYPE_CHECKING:
    from raylit.core.callback import Checkpoint
    from raylit.core.module import LightningModule


@dataclass(frozen=True)
class DataInput:
    """A data set that a run read, as loggers show it.

    Attributes:
        context: `train`, `validation` or `test`.
        name: of the dataset.
        digest: the same for the same data; of 32 letters.
        num_rows: samples, None if that is not known.
        columns: of each part of a batch the type of its numbers and the shape of a sample.
    """

    context: str
    name: str
    digest: str
    num_rows: int | None
    columns: dict[str, tuple[str, tuple[int, ...]]]


class LRSearch(Protocol):
    """The result of a search for a learning rate."""

    def plot(self, suggest: bool = False) -> object:
        """Draw it; returns a matplotlib Figure."""


class Logger(ABC):
    """Where metrics and hyperparameters of one run are written."""

    @property
    @abstractmethod
    def name(self) -> str | None:
        """Name of the experiment; the first folder below `save_dir`."""

    @property
    @abstractmethod
    def version(self) -> int | str | None:
        """Name of this run within the experiment; the second folder below `save_dir`."""

    @property
    def save_dir(self) -> str | None:
        """Root folder of the files of all experiments, or None when nothing is kept in files."""
        return None

    @property
    def given_dir(self) -> str | None:
        """`save_dir` as far as it is known before a run is opened; None: the Trainer's folder."""
        return self.save_dir

    @property
    def log_dir(self) -> str | None:
        """Folder of this run, or None when nothing is kept in files."""
        return None

    @property
    def experiment(self) -> Any:
        """The object of the logging library itself, for whatever it can do beyond this class."""
        return None

    @property
    def run_id(self) -> str | None:
        """Identity of the run in its store, or None where there is no such thing."""
        return None

    @property
    def measured_groups(self) -> Collection[str]:
        """Groups of measurements that raylit makes by itself and that are wanted here.

        Of `perf`, `optim` and `system`; the first two come as metrics, see `engine/monitor.py`.
        """
        return ()

    def watch_node(self, node: int) -> None:
        """Measure the machine while a fit runs, where the store can show that.

        One rank of each node, also of those without rank 0; must not block.
        """

    def leave_node(self) -> None:
        """The fit has ended on this node."""

    def resume(self, run_id: str) -> None:
        """Go on with the run that a checkpoint names, where the store can.

        Driver only, before `open`.
        """

    def branch(self, step: int, *, is_newest: bool) -> None:
        """The user has chosen the checkpoint that the fit goes on from.

        Values that its run holds after that checkpoint are of another training, which is not to be
        mixed with this one. Driver only, after `resume`, before `open`.

        Args:
            step: the number of steps before the checkpoint.
            is_newest: whether no newer checkpoint of that run lies beside it.
        """

    def start_over(self) -> None:
        """A fit begins from scratch: earlier values belong to another fit.

        Driver, before `open`.
        """

    def open(self, *, default_root_dir: str, tags: Mapping[str, str]) -> None:
        """Create the run. Driver only, once, before any worker starts.

        Args:
            default_root_dir: absolute folder of the Trainer, for loggers that were given none.
            tags: facts about the run worth showing beside it, such as `raylit.version`.

        Raises:
            Exception: whatever the store raises when it cannot be reached; the run is then not
                started.
        """

    def explain(self, reason: str, details: str = "") -> None:
        """Record why the run ends. Driver only, before `close`; must not block.

        Args:
            reason: one line.
            details: such as a traceback.
        """

    def announce(self, status: str) -> None:
        """The run is about to end, and this process may be killed before `close`.

        Set the end state now. Driver only; must not block.
        """

    def close(self, status: str) -> None:
        """Set the end state of the run. Driver only, once, after the last worker.

        Args:
            status: `success`, `failed` (an exception) or `killed` (Ctrl-C, SIGTERM).
        """

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record numbers at one step. Rank 0; must not block.

        Args:
            metrics: name to number; 'epoch' is among them.
            step: the x-axis, optimizer steps unless the user logged a key `step`.
        """

    @abstractmethod
    def log_hyperparams(self, params: Mapping[str, object]) -> None:
        """Record hyperparameters, nested mappings allowed. Rank 0, once, before the first step."""

    def log_settings(self, settings: Mapping[str, object]) -> None:
        """Record how a fit is set up, where the store shows more than hyperparameters.

        Rank 0, once, before the first step.

        Args:
            settings: the Trainer's arguments that differ from the defaults, optimizers, schedulers,
                the seed, the number of ranks; nested, plain values.
        """

    def log_input(self, data: DataInput) -> None:
        """Record which data the run reads. Rank 0, once for each stage; must not block."""

    def log_summary(self, text: str) -> None:
        """Record the table of the model's parts, where the store keeps texts. Rank 0, once."""

    def log_curves(self, history: Sequence[Mapping[str, float]]) -> None:
        """Record a picture of the epoch values, where the store keeps some. Rank 0, at the end.

        Args:
            history: as in `Result.history`.
        """

    def log_lr_search(self, found: LRSearch) -> None:
        """Record the result of a learning-rate search, where the store keeps figures. Rank 0."""

    def join(self, run_id: str | None, step: int = 0) -> None:
        """An evaluation begins: log into the run that made the evaluated model, if the store can.

        The status of that run stays as it is. Driver only, before `open`.

        Args:
            run_id: of the checkpoint; None: there is none, or it does not tell.
            step: of the checkpoint, where its values stand.
        """

    @property
    def wants_model(self) -> bool:
        """Whether `keep_model` is to be called at the end of a fit."""
        return False

    def keep_model(self, module: LightningModule, inputs: tuple[object, ...], step: int) -> None:
        """Keep the trained model, where the store has a place for it. Rank 0, before `finalize`.

        Args:
            module: on the CPU.
            inputs: the arguments of its `forward` in the first validation batch.
            step: optimizer steps taken.
        """

    def config_arguments(self) -> dict[str, object]:
        """Return constructor arguments that no attribute of the same name holds. Driver.

        An attribute may have `_` before the name. Arguments that make it write into one particular
        run are left out.
        """
        return {}

    def log_config(self, text: str) -> None:
        """Record the config of a fit, where the store keeps texts. Rank 0, once.

        Args:
            text: YAML that `raylit fit --config` takes, without secrets.
        """

    def log_graph(self, model: Any, input_array: ForwardInput = None) -> None:
        """Record the model's graph, where the store can show one. Rank 0."""

    def save(self) -> None:
        """Write the buffer, if writing is cheap.

        Rank 0, every second at most, after every epoch, and before a checkpoint is written.
        """

    def settle(self, timeout_s: float) -> None:
        """Return once all that was logged would outlive this machine, or after `timeout_s`.

        Rank 0, before a checkpoint is written; in a thread if that is written by one. A fit that
        goes on from the checkpoint logs only later values.
        """

    def state_dict(self) -> StateDict:
        """Return the state for `load_state_dict`, so that a fit that goes on logs each value once.

        Rank 0, when a checkpoint is made. Plain data.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on where a checkpoint was made.

        On the driver before `open`, and on rank 0 when the state of the training is restored.
        """

    def finalize(self, status: str) -> None:
        """Write all buffered values and release all resources.

        Rank 0, once, at the end of the loop; `status` as in `close`.
        """

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Told that `checkpoint_callback` has written a file. Rank 0; must not block."""


class ForeignLogger(Logger):
    """An object that derives from no Logger but has `log_metrics`, as a Logger.

    Of the methods that Lightning calls, those that it has are called, with Lightning's arguments;
    the others do nothing.

    Args:
        logger: the object.

    Example:
        >>> class Rows:
        ...     def __init__(self):
        ...         self.rows = []
        ...
        ...     def log_metrics(self, metrics, step):
        ...         self.rows.append((step, dict(metrics)))
        >>> Trainer(logger=Rows(), max_epochs=1).fit(BoringModel())
    """

    def __init__(self, logger: object) -> None:
        self._logger = logger

    @property
    def name(self) -> str | None:
        name: str | None = getattr(self._logger, "name", None)
        return name

    @property
    def version(self) -> int | str | None:
        version: int | str | None = getattr(self._logger, "version", None)
        return version

    @property
    def save_dir(self) -> str | None:
        folder: str | None = getattr(self._logger, "save_dir", None)
        return folder

    @property
    def log_dir(self) -> str | None:
        folder: str | None = getattr(self._logger, "log_dir", None)
        return folder

    @property
    def experiment(self) -> Any:
        return getattr(self._logger, "experiment", None)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._call("log_metrics", metrics=metrics, step=step)

    def log_hyperparams(self, params: Mapping[str, object]) -> None:
        self._call("log_hyperparams", params)

    def log_graph(self, model: Any, input_array: ForwardInput = None) -> None:
        self._call("log_graph", model)

    def save(self) -> None:
        self._call("save")

    def finalize(self, status: str) -> None:
        self._call("finalize", status)

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        self._call("after_save_checkpoint", checkpoint_callback)

    def _call(self, method: str, *args: object, **kwargs: object) -> None:
        function = getattr(self._logger, method, None)
        if function is not None:
            function(*args, **kwargs)


def as_loggers(loggers: Iterable[object]) -> list[Logger]:
    """Return the loggers of a Trainer with the whole contract, whatever class they are of."""
    return [one if isinstance(one, Logger) else ForeignLogger(one) for one in loggers]


def number_of(key: str, value: object, store: str) -> float | None:
    """Return a metric as a number; None, and one warning, if it is none.

    Args:
        key: the metric's name.
        value: what was logged.
        store: what records it, for the warning.
    """
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        warn_once(
            f"{store} records numbers only, so the metric {key} = {value!r} was left out.",
            key=f"{store} metric {key}",
        )
        return None
