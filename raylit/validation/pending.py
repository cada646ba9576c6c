"""Validation that training does not wait for.

It validates a checkpoint in a Ray task, and its values are reported for the step they belong to.

When validation is due the run is copied, and a thread writes the copy to a file. Once that is
whole, a task (see `launch/on_ray/validation.py`) loads it and validates it as `Trainer.validate`
would. Some batches later its values arrive. Between two batches the loggers then get them at their
step, and EarlyStopping and ModelCheckpoint get a snapshot of the run as it was (`snapshot.py`) and
judge them as if they had waited; ModelCheckpoint saves the file that was validated.

Values arrive in the order of their validations, on all ranks between the same two batches.
"""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NoReturn, cast

from raylit.checkpoint import folder
from raylit.checkpoint.background import CheckpointWriter
from raylit.core.callback import Checkpoint, checkpoint_folder
from raylit.core.logger import as_loggers
from raylit.core.progress import Progress
from raylit.errors import ConfigError
from raylit.runtime.aliases import PlainDict, StateDict
from raylit.runtime.messages import warn
from raylit.validation.snapshot import Snapshot

if TYPE_CHECKING:
    from torch import Tensor

    from raylit.core.job import ValidationStarter
    from raylit.core.trainer import RunningTrainer
    from raylit.engine.run import Run


@dataclass
class Pending:
    """A validation whose values have not arrived.

    Attributes:
        path: the checkpoint.
        progress: the counters when it was due.
        seen: what callbacks saw then.
        weights_only: whether the checkpoint holds weights only.
    """

    path: str
    progress: StateDict
    seen: dict[str, Tensor]
    weights_only: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps that had been taken."""
        return int(self.progress["steps"])


class AsyncValidation:
    """The validations of a fit that have not come back.

    All ranks have it, and call its methods together; the tasks are rank 0's.

    Args:
        run: the run.
        starter: starts them, on rank 0.
        max_pending: how many may wait or run.

    Raises:
        ConfigError: a callback works on the weights that are validated, or a scheduler waits for
            the values.
    """

    def __init__(self, run: Run, starter: ValidationStarter | None, max_pending: int) -> None:
        self._run = run
        self._starter = starter
        self._max_pending = max_pending
        self._pending: list[Pending] = []
        self._writer = CheckpointWriter()
        averaging = [type(one).__name__ for one in run.trainer.callbacks if one.averages_weights]
        if averaging:
            raise ConfigError(
                f"{averaging[0]} validates with the average of the weights, which an asynchronous"
                " validation does not have. Leave one of the two out."
            )
        looking = [type(one).__name__ for one in run.trainer.callbacks if one.looks_at_validation]
        if looking:
            raise ConfigError(
                f"{looking[0]} looks at validation as it runs, which an asynchronous validation"
                " does not show. Leave one of the two out, or draw after the fit:"
                " trainer.validate(...)."
            )

    def _tasks(self) -> ValidationStarter:
        assert self._starter is not None, "rank 0 alone has it"
        return self._starter

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def is_full(self) -> bool:
        """Whether there may not be one more."""
        return len(self) >= self._max_pending

    # ---- to begin one ----

    def check(self) -> None:
        """Refuse schedulers that cannot wait for the values known from the sanity check.

        Raises:
            ConfigError: a ReduceLROnPlateau watches one of them.
        """
        names = {
            f"{entry.name}{fork}{entry.suffix}"
            for entry in self._run.val_entries.values()
            for fork in ("", "_epoch")
        }
        for config in self._run.schedulers:
            if config.reduce_on_plateau and config.monitor in names:
                self.refuse_scheduler(config.monitor)

    @staticmethod
    def refuse_scheduler(monitor: str) -> NoReturn:
        """Say that a learning rate cannot wait for a value of validation.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            f"ReduceLROnPlateau watches {monitor!r}, which training does not log; with"
            " async_validation a value of validation arrives at some later batch, another each"
            " time. Let it watch a value of training, or leave async_validation out."
        )

    def begin(self) -> None:
        """Have the run as it is now validated.

        Waits for the copy alone, unless the one before is still being written.
        """
        run = self._run
        trainer = self._run.trainer
        savers = [one for one in trainer.callbacks if isinstance(one, Checkpoint)]
        # ModelCheckpoint saves this very file later, when the state of now is gone
        weights_only = not any(one.wants_training_state(trainer) for one in savers)
        checkpoint = run.dump(weights_only=weights_only)
        pending = Pending(
            self._path() if run.world.is_zero else "",
            run.progress.state_dict(),
            dict(trainer.callback_metrics),
            weights_only,
        )
        self._pending.append(pending)
        if run.world.is_zero:
            # Started by the writer: a task must not find half a file
            self._writer.write(checkpoint, pending.path, lambda path: self._start(pending))
        run.data.last_validation = time.monotonic()

    def _path(self) -> str:
        # not .ckpt: nobody is to find it who looks for checkpoints; and no name comes twice,
        # however other numbers of workers count batches
        name = f"{self._run.job.id}-step={self._run.progress.steps}-{uuid.uuid4().hex[:8]}.pending"
        return os.path.join(self._folder(), name)

    def _folder(self) -> str:
        return os.path.join(checkpoint_folder(self._run.trainer), "validation")

    def _start(self, pending: Pending) -> None:
        self._tasks().start(pending.path, pending.progress, self._has_news)

    def _has_news(self) -> None:
        if self._run.world.size == 1:  # else the ranks have to agree first
            self._run.agreement.pauses = True

    # ---- to see how they ended ----

    @property
    def is_ready(self) -> bool:
        """Whether the oldest has ended, as rank 0 knows."""
        if not self._pending or not self._run.world.is_zero:
            return False
        path = self._pending[0].path
        # In this order: a writer that is done has started its task already. One that ends between
        # the questions in the other order would count as a file that could not be written
        return bool(self._tasks().is_ready(path)) or not (
            self._writer.is_busy or self._tasks().has(path)
        )

    def wait(self, seconds: float) -> None:
        """Wait until the oldest has ended, but no longer than this."""
        if self._pending and self._run.world.is_zero:
            self._writer.wait()
            self._tasks().wait(self._pending[0].path, seconds)

    def collect(self) -> None:
        """Take the values that have arrived.

        Raises:
            Exception: what the user's code raised in a validation.
        """
        while self._pending:
            # Rank 0 alone knows whether it has ended; all are to take its values at the same place
            outcome = self._run.world.broadcast_object(self._outcome() if self.is_ready else None)
            if outcome is None:
                return
            pending = self._pending.pop(0)
            where = f"the asynchronous validation of step {pending.steps}"
            # A task that was lost, by a node or for want of memory, is no fault of the user's code
            if isinstance(outcome, str):
                warn(f"There are no values of {where}: {outcome} Training goes on.", RuntimeWarning)
            elif isinstance(outcome, BaseException):
                # It is a launch.remote.WorkerFailure.
                error: BaseException = outcome.original()  # type: ignore[attr-defined]
                error.add_note(f"(raylit) in {where}, which ran in a Ray task")
                raise error from outcome
            else:
                self._take(pending, outcome)
            # After the callbacks, which may have given the file a second name
            if self._run.world.is_zero and folder.exists(pending.path):
                folder.remove(pending.path)
                folder.remove_if_empty(os.path.dirname(pending.path))

    def _outcome(self) -> object:
        path = self._pending[0].path
        return (
            self._tasks().outcome(path)
            if self._tasks().has(path)
            else "its checkpoint could not be written."
        )

    def _take(self, pending: Pending, outcome: PlainDict) -> None:
        """Let loggers, history and callbacks have the values, as those of the step they are of."""
        run = self._run
        progress = Progress()
        progress.load_state_dict(pending.progress)
        for kind, loader, values, step in outcome["rows"]:
            if kind == "batch":
                # A task counts its batches from 0, the fit over all its validations
                step += run.data.val_batches_seen.get(loader, 0)
            for logger in as_loggers(run.trainer.loggers) if run.world.is_zero else ():
                logger.log_metrics(metrics=values, step=step)
            if kind == "end":
                row = {name: value for name, value in values.items() if name != "epoch"}
                run.remember(row, progress)
        run.save_loggers()
        run.outcome.has_validated = True
        snapshot = Snapshot(
            run.trainer,
            progress,
            {**pending.seen, **outcome["callback"]},
            pending.path,
            pending.weights_only,
        )
        for callback in run.trainer.callbacks:
            if callback.watches_metrics:
                callback.on_validation_end(cast("RunningTrainer", snapshot), run.module)
        for loader, number in outcome["seen"].items():
            run.data.val_batches_seen[loader] = run.data.val_batches_seen.get(loader, 0) + number
        for kind in ("callback", "logged", "progress_bar"):
            getattr(run.metrics, kind).update(outcome[kind])

    # ---- over the end of a process ----

    def state(self) -> list[StateDict]:
        """Return, as plain data, which have not come back, for a checkpoint."""
        return [asdict(pending) for pending in self._pending]

    def go_on(self, states: list[StateDict]) -> None:
        """Begin those again that had not come back when a checkpoint was saved."""
        # As rank 0 sees it: ranks with lists of different lengths would wait for each other
        there = self._run.world.broadcast_object([folder.exists(state["path"]) for state in states])
        for state, is_there in zip(states, there, strict=True):
            pending = Pending(**state)
            if is_there:
                self._pending.append(pending)
                if self._run.world.is_zero:
                    self._start(pending)
            else:
                warn(LOST.format(pending.steps))
        if self._run.world.is_zero:
            self._remove_left({pending.path for pending in self._pending})

    def _remove_left(self, listed: set[str]) -> None:
        """Delete what this job has left that began after the checkpoint and died: it comes again.

        Each file is a whole checkpoint.
        """
        for path in folder.newest_first(self._folder(), f"{self._run.job.id}-*.pending"):
            if path not in listed:
                folder.remove(path)

    def close(self) -> None:
        """End those that run. Their checkpoints stay, for a fit that goes on."""
        if self._starter is not None:
            # First: a file that is still being written would start its task after the end
            self._writer.close()
            self._starter.cancel()


LOST = (
    "The asynchronous validation of step {} had not ended when the checkpoint was saved, and its"
    " own checkpoint is gone: EarlyStopping and ModelCheckpoint go on without its values."
)
