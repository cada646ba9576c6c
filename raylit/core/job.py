"""Job and Result, which go to the processes that do the work and come back from them.

Both are pickled when those are others than this one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from raylit.core import shown
from raylit.runtime.aliases import CheckpointDict, Loaders, StateDict
from raylit.runtime.messages import number_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from raylit.core.datamodule import LightningDataModule
    from raylit.core.module import LightningModule
    from raylit.core.progress import Progress
    from raylit.core.trainer import JobTrainer, RunHandle

Fn = Literal["fit", "validate", "test", "predict"]


# ---- what a launcher gives to a job, where there is such a thing ----


class PreemptionNotice(Protocol):
    """Says whether the machine of a rank is about to be taken away.

    Attributes:
        given: whether the notice has come, to any rank.
    """

    given: bool

    @property
    def terminated(self) -> bool:
        """Whether this process got a SIGTERM, or the driver wants the run to end."""

    @property
    def is_due(self) -> bool:
        """Whether this rank wants `came` to be asked."""

    def came(self) -> bool:
        """Ask, which takes some milliseconds. To be called on all ranks."""


class ValidationStarter(Protocol):
    """Starts validations that training does not wait for, on rank 0, each of a checkpoint."""

    def start(self, path: str, progress: dict[str, object], then: Callable[[], None]) -> None:
        """Have the checkpoint at `path` validated; `then` is called at the end, in a thread."""

    def has(self, path: str) -> bool:
        """Tell whether it was started."""

    def is_ready(self, path: str) -> bool:
        """Tell whether it has ended."""

    def wait(self, path: str, seconds: float) -> None:
        """Wait until it has ended, but no longer than this."""

    def outcome(self, path: str) -> object:
        """Return its values, the exception it ended with, or in words why there is nothing."""

    def cancel(self) -> None:
        """End all that run."""


class PendingValidations(Protocol):
    """The validations of a fit that have not come back. All ranks call its methods together."""

    def __len__(self) -> int:
        """Return how many there are."""

    @property
    def is_full(self) -> bool:
        """Whether there may not be one more."""

    @property
    def is_ready(self) -> bool:
        """Whether the oldest has ended, as rank 0 knows."""

    def check(self) -> None:
        """Find, after the sanity check, a scheduler that cannot wait for values of validation."""

    def refuse_scheduler(self, monitor: str) -> NoReturn:
        """Raise the ConfigError that a learning rate cannot wait for `monitor`."""

    def begin(self) -> None:
        """Have the run as it is now validated."""

    def wait(self, seconds: float) -> None:
        """Wait until the oldest has ended, but no longer than this."""

    def collect(self) -> None:
        """Take the values that have arrived."""

    def state(self) -> list[StateDict]:
        """Return, as plain data, which have not come back, for a checkpoint."""

    def go_on(self, states: list[StateDict]) -> None:
        """Begin those again that had not come back when a checkpoint was saved."""

    def close(self) -> None:
        """End those that run. Their checkpoints stay, for a fit that goes on."""


class ValidationSettings(Protocol):
    """How validation runs that training does not wait for; see `raylit.ValidationConfig`."""

    num_cpus: float
    num_gpus: float
    resources: dict[str, float]

    def attach(self, run: RunHandle, starter: ValidationStarter | None) -> PendingValidations:
        """Return the validations, none yet, of a fit.

        Args:
            run: the engine's Run.
            starter: starts them, on rank 0.
        """


class RescalePlan(Protocol):
    """Fits a job that was meant for a certain number of workers to those that there are."""

    size: int
    most: int

    def meant(self, loader: Loaders, accumulate: int) -> tuple[float, int]:
        """Return how many batches an epoch has for each of all workers, and how many a step takes.

        Args:
            loader: the training data of this worker.
            accumulate: batches that a step takes of each of the workers that there are.
        """

    def schedule_count(
        self, loader: Loaders, batch: int, number: float, accumulate: int
    ) -> int | None:
        """Return the batch at which all the workers would have stepped the schedulers.

        None if they would not have since the step before.

        Args:
            loader: the training data of this worker.
            batch: the number of the batch after which the optimizer has just stepped.
            number: batches of the epoch.
            accumulate: batches of a step.
        """

    def go_on(self, progress: Progress, accumulate: int, ranks: Sequence[StateDict]) -> int | None:
        """Count the batches that were read as so many workers would have counted them.

        Args:
            progress: the counters of the checkpoint, which are changed.
            accumulate: batches whose gradients add up to one optimizer step.
            ranks: the states in the checkpoint of the ranks that saved it.

        Returns:
            The batches of the epoch as they were counted before, None if the count is the same.
        """


class Task(Protocol):
    """Work of a job that is none of the four: it runs in the place of their loops, on all ranks.

    Model and data are ready; model and batches are on this rank's device.

    Attributes:
        name: the method of Trainer.
    """

    name: str

    def __call__(self, run: Any) -> object:
        """Do the work with the engine's Run; the user gets the return value of rank 0."""


class Display(Protocol):
    """Where the progress of a job is shown."""

    def show(self, shown: dict[str, object]) -> None:
        """Show how far the job is."""

    def print(self, text: str) -> None:
        """Show a line of text above that."""

    def close(self) -> None:
        """Stop drawing, and leave the last picture."""


@dataclass(slots=True)
class Job:
    """The work of one call of `fit`, `validate`, `test` or `predict`.

    The driver and its launcher write it before the workers start. Then each worker sets for itself
    `accelerator`, `display`, `preemption_notice`, `validation_starter`, `rescale_plan` and
    `ckpt_path`. Nobody else writes it.

    Attributes:
        fn: which of the four.
        trainer: the settings, callbacks and loggers.
        module: the model.
        datamodule: the data, or None.
        data: loaders given directly, by stage (`train`, `val`, `test`, `predict`).
        ckpt_path: checkpoint to start from, already a path, or None.
        is_picked: whether the user has chosen `ckpt_path`, which may not be the newest.
        opened: what stands in `ckpt_path`, under it, if this process has read it already; see
            `checkpoint/find.py`. It does not travel.
        weights_only: False lets the checkpoint run code when it is loaded.
        return_predictions: whether `predict` keeps its results.
        returns_state: whether the Result must carry what the driver's objects are to hold
            afterwards, since they are others than the workers'.
        preemption_notice: says whether this rank's machine is about to be taken away, or None where
            nobody would know; see `launch/on_ray/preemption.py`.
        validation_starter: starts the validations that training does not wait for, on rank 0; see
            `launch/on_ray/validation.py`.
        rescale_plan: fits the job to the workers there are, if they may be fewer or more than it
            was meant for, or None; see `launch/on_ray/rescale.py`.
        accelerator: what the ranks compute on, as the launcher has chosen; None: what the Trainer
            says.
        display: where the progress bar of rank 0 sends what it would draw, or None to draw here.
        task: what is done instead, with the data of `fn`, or None.
        config: of a fit that was written in Python, the YAML that makes the same one, for loggers.
        id: stands in its checkpoints, so that workers that start again know them from those that
            others write to the same folder.
    """

    fn: Fn
    trainer: JobTrainer
    module: LightningModule
    datamodule: LightningDataModule | None = None
    data: dict[str, Loaders] = field(default_factory=dict)
    ckpt_path: str | None = None
    weights_only: bool | None = None
    return_predictions: bool = True
    returns_state: bool = False
    preemption_notice: PreemptionNotice | None = None
    validation_starter: ValidationStarter | None = None
    rescale_plan: RescalePlan | None = None
    accelerator: str | None = None
    display: Display | None = None
    is_picked: bool = False
    opened: dict[str, CheckpointDict] = field(default_factory=dict)
    task: Task | None = None
    config: str = ""
    id: str = field(default_factory=lambda: os.urandom(16).hex())


@dataclass(slots=True, repr=False)
class Result:
    """The result of a fit.

    `engine.worker.collect` makes it, and the Trainer takes `state` out. Nobody else writes it.

    Attributes:
        metrics: the last value of everything logged, as numbers.
        best_model_path: checkpoint with the best monitored value, or None.
        best_model_score: that value, or None.
        last_model_path: the newest checkpoint, or None.
        run_id: the MLflow run, or None.
        history: the epoch values in the order they were logged, each with `epoch` and `step`.
        epochs: epochs completed.
        steps: optimizer steps taken.
        data_wait: share of the time of training in which rank 0 waited for data; 0 if for less than
            five seconds.
        value: what `validate`, `test` and `predict` return to the user.
        state: for the driver's objects; only on the way from the workers.

    Example:
        >>> result = trainer.fit(model, datamodule=data)
        >>> result.metrics["val_loss"], result.best_model_path
    """

    metrics: dict[str, float] = field(default_factory=dict)
    best_model_path: str | None = None
    best_model_score: float | None = None
    last_model_path: str | None = None
    run_id: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    epochs: int = 0
    steps: int = 0
    data_wait: float = 0.0
    value: Any = None
    state: StateDict | None = None

    @property
    def dataframe(self) -> DataFrame:
        """The history as a pandas DataFrame, a row for each time that values were logged."""
        import pandas as pd

        return pd.DataFrame(self.history)

    def plot(self, *keys: str) -> Figure:
        """Draw the history over the steps.

        Args:
            keys: metrics to draw; all if none is named.

        Returns:
            A matplotlib Figure, which a notebook shows as the last line of a cell.
        """
        return shown.curves(self.history, keys)

    def __repr__(self) -> str:
        parts = [self._done()]
        parts += [f"{name}={value}" for name, value in self._where()]
        if self.metrics:
            parts.append(shown.in_short(self.metrics))
        return f"Result({'; '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = [("done", self._done())]
        rows += [(name, f"{value:.6g}") for name, value in self.metrics.items()]
        rows += self._where()
        return shown.as_html(rows, shown.curves(self.history) if self.history else None)

    def _done(self) -> str:
        return f"{number_of(self.epochs, 'epoch')}, {number_of(self.steps, 'step')}"

    def _where(self) -> list[tuple[str, str]]:
        """Return the best checkpoint and the MLflow run, where there are any."""
        best = self.best_model_path or self.last_model_path
        named = [("checkpoint", best), ("run_id", self.run_id)]
        return [(name, value) for name, value in named if value]
