"""RecoveryCheckpoint: always a place to go on from, whatever happens to the process."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from raylit.checkpoint import folder, save
from raylit.checkpoint.background import CheckpointWriter
from raylit.core.callback import Callback, checkpoint_folder
from raylit.errors import CheckpointError, ConfigError, Stopped, Terminated
from raylit.runtime.aliases import Batch, CheckpointDict, StateDict, StepOutput
from raylit.runtime.messages import info, warn_once

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunHandle, RunningTrainer


class RecoveryCheckpoint(Callback):
    """Keeps the newest states of a fit on disk, to resume from if its process or machine dies.

    They are taken between two batches, copied once and written in the background: the step waits
    for the copy alone. One more is written when SIGTERM, Ctrl-C or an exception ends the fit (at an
    exception unless another callback saves then). `fit(ckpt_path="last")` and `raylit fit --resume`
    go on from the newest whole checkpoint, one of these or one of ModelCheckpoint's; a fit that
    ends well deletes its own. If a checkpoint cannot be written, a warning says so and training
    goes on.

    The Trainer adds one unless `enable_checkpointing=False`. ModelCheckpoint's files are the
    user's; these are nobody's but the next start's.

    Args:
        dirpath: folder or fsspec URL. None: `recovery` in the folder of the first ModelCheckpoint.
        every_n_steps: also after every n optimizer steps. In one process a step is left out while
            the one before is being written.
        every_s: seconds between two; None: not by time. On several ranks they may come up to 16
            batches late.
        keep: how many to keep.

    Attributes:
        is_wanted: whether the time has passed; as this rank knows.
        is_due: whether the state is to be saved after this batch; as all ranks know.

    Raises:
        ConfigError: a number is out of range.

    Example:
        >>> trainer = Trainer(callbacks=[RecoveryCheckpoint(every_n_steps=500, every_s=None)])
        >>> trainer.fit(model, datamodule=data, ckpt_path="last")
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        every_n_steps: int | None = None,
        every_s: float | None = 300,
        keep: int = 2,
    ) -> None:
        for name, value, least in (
            ("every_n_steps", every_n_steps, 1),
            ("every_s", every_s, 0),
            ("keep", keep, 1),
        ):
            if value is not None and (
                not isinstance(value, (int, float)) or isinstance(value, bool) or value < least
            ):
                raise ConfigError(
                    f"RecoveryCheckpoint({name}={value!r}): give a number of at least {least}."
                )
        self.dirpath = folder.absolute(dirpath) if dirpath else None
        self.every_n_steps = every_n_steps
        self.every_s = every_s
        self.keep = keep
        self._clear()

    def _clear(self) -> None:
        self.is_wanted = self.is_due = False
        self._files: list[str] = []
        self._steps = 0  # at the last save, or at the start
        self._writer: CheckpointWriter | None = None
        self._clock: threading.Timer | None = None

    # ---- when ----

    def listens_to(self, event: str) -> bool:
        if event == "on_train_batch_end" and self.every_n_steps is None:
            return False  # a step is to pay nothing for it
        return super().listens_to(event)

    def on_train_start(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        run = trainer.run
        assert run is not None
        self._clear()
        self._steps = trainer.global_step
        run.recovery = self
        if trainer.is_global_zero:
            self._files = self._left_behind(trainer, run.lineage[:-1])
            self._writer = CheckpointWriter()
            self._start_clock(run)

    def on_train_batch_end(
        self,
        trainer: RunningTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        run = trainer.run
        if (
            run is not None
            and self.every_n_steps is not None
            and trainer.global_step - self._steps >= self.every_n_steps
        ):
            self.is_due = True
            run.request_pause()

    def _start_clock(self, run: RunHandle) -> None:
        if self.every_s is None:
            return

        def ring() -> None:
            self.is_wanted = True
            if run.world.size == 1:  # else the ranks have to agree first
                self.is_due = True
                run.request_pause()

        self._clock = threading.Timer(self.every_s, ring)
        self._clock.daemon = True
        self._clock.start()

    @property
    def is_busy(self) -> bool:
        """Whether one is being written."""
        return self._writer is not None and self._writer.is_busy

    # ---- what ----

    def resolve_dirpath(self, trainer: RunningTrainer) -> str:
        """Return the folder of the files."""
        if self.dirpath is not None:
            return self.dirpath
        return os.path.join(checkpoint_folder(trainer), "recovery")

    def save(self, run: RunHandle, *, ending: bool = False) -> None:
        """Take the state of the run as it is between two batches. To be called on all ranks.

        Args:
            run: the run.
            ending: whether the fit is about to end, so that the file has to be written before this
                returns.
        """
        if ending:
            self._save_at_end(run, together=True)
            return
        # Several ranks have agreed to save: rank 0, which alone knows that it is busy, waits
        if run.world.size == 1 and self.is_busy:
            run.request_pause()  # as soon as that is written
            return
        self.is_wanted = self.is_due = False
        self._steps = run.progress.steps
        # On all ranks, which gather the state; rank 0 alone goes on to write it
        try:
            checkpoint = run.dump(lenient=True)
        except Exception as error:  # of a hook of the user's, say
            _warn_not_saved(error)
            checkpoint = None
        if self._writer is None:  # of another rank than 0
            return
        if checkpoint is not None:
            # The loggers are settled first: a fit that goes on from here logs nothing of before
            self._writer.write(
                checkpoint,
                self._path(checkpoint, run),
                self._written,
                run.settle_loggers,
            )
        # Counted from this save on, whatever it was made for; after one that failed, too
        if self._clock is not None:
            self._clock.cancel()
        self._start_clock(run)

    def on_exception(
        self, trainer: RunningTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        run = trainer.run
        if run is None or run.recovery is not self:
            return
        # Else this rank may be the only one to come here, and has to leave it at what there is
        is_everywhere = run.asked_to_end and isinstance(exception, (Terminated, KeyboardInterrupt))
        others_save = any(one.saves_on_exception for one in trainer.callbacks)
        if others_save and not is_everywhere:
            self._end()  # what they save is the same
            return
        if (
            run.has_trained
            and not run.saved_at_end
            and not isinstance(exception, Stopped)
            and (is_everywhere or run.world.size == 1)
        ):
            if run.is_half_done:
                info(
                    "The exception came in the middle of a step, whose traces cannot be undone; the"
                    " newest checkpoint stays that of before."
                )
            else:
                self._save_at_end(run, is_everywhere)
        self._end()

    def _left_behind(self, trainer: RunningTrainer, names: list[str]) -> list[str]:
        """Return this folder's files of unfinished fits that this one goes on, the oldest first.

        They are this one's to delete; those of others that share the folder are not.
        """
        where = self.resolve_dirpath(trainer)
        if not trainer.ckpt_path:
            return []
        folder.remove_unfinished(where)
        return [
            file
            for file in reversed(folder.newest_first(where, "*.ckpt"))
            if any(file.endswith(f"-{name}.ckpt") for name in names)
        ]

    def _path(self, checkpoint: CheckpointDict, run: RunHandle) -> str:
        # The id in the name tells whose file it is where several fits share a folder
        return os.path.join(
            self.resolve_dirpath(run.trainer),
            f"batch={checkpoint['raylit']['progress']['total_batches']}-{run.lineage[-1]}.ckpt",
        )

    def _save_at_end(self, run: RunHandle, together: bool) -> None:
        try:
            checkpoint = run.dump(together=together, lenient=True)
            if self._writer is None:
                return
            # One that is being written would else come after this one in the list of those kept
            self._writer.wait()
            path = self._path(checkpoint, run)
            run.settle_loggers()
            save(checkpoint, path)
        except Exception as error:  # the one that ends the fit is not to be lost over it
            _warn_not_saved(error)
            return
        self._written(path)
        info(f"The run was saved to {path}. fit(ckpt_path='last') goes on from there.")

    def _written(self, path: str) -> None:
        """Forget the older ones, now that a newer one is whole."""
        self._files = [*(file for file in self._files if file != path), path]
        while len(self._files) > self.keep:
            folder.remove(self._files.pop(0))

    # ---- the end ----

    def on_train_end(self, trainer: RunningTrainer, pl_module: LightningModule) -> None:
        if self._writer is not None:
            self._writer.wait()
            for file in self._files:
                folder.remove(file)
            folder.remove_if_empty(self.resolve_dirpath(trainer))
        self._end()

    def teardown(self, trainer: RunningTrainer, pl_module: LightningModule, stage: str) -> None:
        self._end()

    def _end(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock.join()  # its thread would keep the run alive a little longer
        if self._writer is not None:
            self._writer.close()
        self._clear()

    def __getstate__(self) -> StateDict:
        return {**self.__dict__, "_writer": None, "_clock": None}


def _warn_not_saved(error: Exception) -> None:
    text = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
    warn_once(
        f"No recovery checkpoint could be saved: {text} Training goes on without.",
        key=f"no recovery checkpoint: {text}",
    )
