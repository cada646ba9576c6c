"""How the files of checkpoints are written, read and deleted, for those who want it done otherwise.

`Trainer(plugins=[MyCheckpointIO()])` replaces raylit's own way for checkpoints that users ask for:
those of ModelCheckpoint, OnExceptionCheckpoint and `trainer.save_checkpoint`, and `ckpt_path`.
Recovery checkpoints and sharded ones stay raylit's own.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor
from torch.utils._pytree import tree_map

from raylit.checkpoint import folder, format
from raylit.errors import NotSavedError
from raylit.runtime.aliases import Arguments, CheckpointDict

Path = str | os.PathLike[str]


class CheckpointIO(ABC):
    """Writes, reads and deletes checkpoints; rank 0 calls it, but for `load_checkpoint`.

    Example:
        >>> class Counted(TorchCheckpointIO):
        ...     saved = 0
        ...
        ...     def save_checkpoint(self, checkpoint, path, storage_options=None):
        ...         self.saved += 1
        ...         super().save_checkpoint(checkpoint, path, storage_options)
        >>> Trainer(plugins=[Counted()])
    """

    @abstractmethod
    def save_checkpoint(
        self, checkpoint: CheckpointDict, path: Path, storage_options: Arguments | None = None
    ) -> None:
        """Write a checkpoint; an OSError is a warning where training can go on without it."""

    @abstractmethod
    def load_checkpoint(
        self, path: Path, map_location: format.MapLocation = None, weights_only: bool | None = None
    ) -> CheckpointDict:
        """Read a checkpoint."""

    @abstractmethod
    def remove_checkpoint(self, path: Path) -> None:
        """Delete a checkpoint that is no longer wanted."""

    def teardown(self) -> None:
        """A job ends; called on all ranks."""


def write(
    io: CheckpointIO | None,
    checkpoint: CheckpointDict,
    path: Path,
    storage_options: Arguments | None = None,
) -> None:
    """Write a checkpoint, in raylit's own way where no other is given.

    Raises:
        NotSavedError: it could not be written.
    """
    if io is None:
        format.save(checkpoint, path, storage_options=storage_options)
        return
    try:
        io.save_checkpoint(checkpoint, path, storage_options)
    except OSError as error:
        raise NotSavedError(
            f"{type(io).__name__} could not write the checkpoint {os.fspath(path)}:"
            f" {type(error).__name__}: {error}."
        ) from error


class TorchCheckpointIO(CheckpointIO):
    """raylit's own way, for those who derive from it: one file, whole or not at all."""

    def save_checkpoint(
        self, checkpoint: CheckpointDict, path: Path, storage_options: Arguments | None = None
    ) -> None:
        """Write a checkpoint."""
        format.save(checkpoint, path, storage_options=storage_options)

    def load_checkpoint(
        self, path: Path, map_location: format.MapLocation = None, weights_only: bool | None = None
    ) -> CheckpointDict:
        """Read a checkpoint."""
        return format.load(path, map_location=map_location or "cpu", weights_only=weights_only)

    def remove_checkpoint(self, path: Path) -> None:
        """Delete a checkpoint."""
        folder.remove(os.fspath(path))


class WrappingCheckpointIO(CheckpointIO):
    """Wraps another CheckpointIO, whose work it extends.

    Args:
        checkpoint_io: the other; by default raylit's own way.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        self._checkpoint_io = checkpoint_io

    @property
    def checkpoint_io(self) -> CheckpointIO:
        """The CheckpointIO within."""
        if self._checkpoint_io is None:
            self._checkpoint_io = TorchCheckpointIO()
        return self._checkpoint_io

    @checkpoint_io.setter
    def checkpoint_io(self, checkpoint_io: CheckpointIO) -> None:
        self._checkpoint_io = checkpoint_io

    def save_checkpoint(
        self, checkpoint: CheckpointDict, path: Path, storage_options: Arguments | None = None
    ) -> None:
        """Write a checkpoint."""
        self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)

    def load_checkpoint(
        self, path: Path, map_location: format.MapLocation = None, weights_only: bool | None = None
    ) -> CheckpointDict:
        """Read a checkpoint."""
        return self.checkpoint_io.load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: Path) -> None:
        """Delete a checkpoint."""
        self.checkpoint_io.remove_checkpoint(path)


class AsyncCheckpointIO(WrappingCheckpointIO):
    """Writes in a thread while training goes on, one checkpoint after the other.

    A copy of the tensors is made first. A failure is raised at the next save, or at the end.
    """

    def __init__(self, checkpoint_io: CheckpointIO | None = None) -> None:
        super().__init__(checkpoint_io)
        self._thread: ThreadPoolExecutor | None = None
        self._written: Future[None] | None = None

    def save_checkpoint(
        self, checkpoint: CheckpointDict, path: Path, storage_options: Arguments | None = None
    ) -> None:
        """Have a copy of a checkpoint written, after the one before it is."""
        self._wait()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="raylit-checkpoints")
        # Else training would change the tensors while the thread writes them
        copied = tree_map(
            lambda value: value.detach().clone() if isinstance(value, Tensor) else value, checkpoint
        )
        self._written = self._thread.submit(super().save_checkpoint, copied, path, storage_options)

    def load_checkpoint(
        self, path: Path, map_location: format.MapLocation = None, weights_only: bool | None = None
    ) -> CheckpointDict:
        """Read a checkpoint, once the last is written."""
        self._wait()
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: Path) -> None:
        """Delete a checkpoint, once the last is written."""
        self._wait()
        super().remove_checkpoint(path)

    def teardown(self) -> None:
        """Wait for the last checkpoint, and end the thread."""
        try:
            self._wait()
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._thread = None

    def _wait(self) -> None:
        written = self._written
        # First of all, so that a failure is raised once and not at every call from now on
        self._written = None
        if written is not None:
            written.result()

    def __getstate__(self) -> dict[str, object]:
        # Threads cannot be pickled; a worker starts one of its own
        return {**vars(self), "_thread": None, "_written": None}
