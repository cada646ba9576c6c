"""The contract of a logger.

A logger lives twice. On the driver, the process in which `Trainer.fit` was called, `open` is called
once before any worker starts and `close` once after the last has ended, however it ended: there a
run is created and its status set; `announce` comes before, if the driver is told to end while
workers run. In between the logger travels, pickled, to rank 0 of the workers (the same process and
object when `num_workers=0`), where the loop calls `log_metrics`, `log_hyperparams`, `save` and
`finalize`. When workers are restarted the pickled logger starts anew there, so whatever must
survive belongs into what `open` stored.

`log_metrics` is called from the training thread: it must not block on a network or a database, and
after `open` has succeeded nothing here may stop the training. `open` should raise at once where the
store cannot be reached. Ranks other than 0 call none of it.

To write one, subclass `Logger`, implement `name`, `version`, `log_metrics` and `log_hyperparams`,
and run `raylit.testing.LoggerConformance` against it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raylit.core.callback import Checkpoint


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

    def resume(self, run_id: str) -> None:
        """Go on with the run that a checkpoint names, where the store can.

        Driver only, before `open`.
        """

    def branch(self, step: int, *, is_newest: bool) -> None:
        """The user has chosen the checkpoint that the fit goes on from.

        What its run holds behind it is of another training, which is not to be mixed with this one.
        Driver only, after `resume`, before `open`.

        Args:
            step: the number of steps before the checkpoint.
            is_newest: whether no newer checkpoint of that run lies beside it.
        """

    def start_over(self) -> None:
        """A fit begins from scratch: what was logged before is another fit's. Driver, before `open`."""

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
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Record hyperparameters, nested mappings allowed. Rank 0, once, before the first step."""

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Record how a fit is set up, where the store shows more than hyperparameters.

        Rank 0, once, before the first step.

        Args:
            settings: the Trainer's arguments that differ from the defaults, optimizers, schedulers,
                the seed, the number of ranks; nested, plain values.
        """

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Record the model's graph, where the store can show one. Rank 0."""

    def save(self) -> None:
        """Write the buffer, if writing is cheap.

        Rank 0, every second at most, after every epoch, and before a checkpoint is written.
        """

    def settle(self, timeout_s: float) -> None:
        """Return once all that was logged would outlive this machine, or after `timeout_s`.

        Rank 0, before a checkpoint is written; in a thread if that is written by one. A fit that
        goes on from it logs only what comes after.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs so that a fit that goes on logs each value once.

        Rank 0, when a checkpoint is made. Plain data.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made.

        On the driver before `open`, and on rank 0 when the state of the training is restored.
        """

    def finalize(self, status: str) -> None:
        """Write all that is buffered and release what is held.

        Rank 0, once, at the end of the loop; `status` as in `close`.
        """

    def after_save_checkpoint(self, checkpoint_callback: Checkpoint) -> None:
        """Told that `checkpoint_callback` has written a file. Rank 0; must not block."""
