"""The contract of a profiler.

A profiler sees actions begin and end: hooks, steps, fetching of batches, saving of checkpoints;
actions may lie within one another. When a Trainer has one, everything worth seeing is wrapped once,
when the run is prepared (`raylit.profiling`), so a run without a profiler pays nothing. Every rank
has its own, pickled with the Trainer; `setup` is called before the first action, `describe` after
the last, also when an exception ended the run.

Names of actions are `[Callback]<state_key>.<hook>`, `[LightningModule]<class>.<hook>`,
`[LightningDataModule]<class>.<hook>`, `[Strategy]<class>.training_step` and the like,
`run_training_epoch`, `run_training_batch`, `[_TrainingEpochLoop].train_dataloader_next`,
`save_checkpoint`. User code may add its own: `with self.trainer.profiler.profile("my action"):
...`.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from raylit.runtime.aliases import StateDict
from raylit.runtime.messages import log


class Profiler(ABC):
    """Base of all profilers: implement `start` and `stop`, and `summary` for a report at the end.

    Args:
        dirpath: folder for files, or an fsspec URL. Default: that of the first logger,
            `trainer.log_dir`.
        filename: name of the report's file, `<stage>-<filename>.txt`; None prints the report
            instead.
    """

    _lightning_module: Any = None  # the module that runs, while it does

    def __init__(
        self, dirpath: str | os.PathLike[str] | None = None, filename: str | None = None
    ) -> None:
        self.dirpath = dirpath
        self.filename = filename
        self._output_file: IO[str] | None = None
        self._write_stream: Callable[[str], object] | None = None
        self._local_rank: int | None = None
        self._stage: str | None = None

    @abstractmethod
    def start(self, action_name: str) -> None:
        """An action begins."""

    @abstractmethod
    def stop(self, action_name: str) -> None:
        """An action has ended."""

    def summary(self) -> str:
        """Return the report; empty for none."""
        return ""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        """A run begins.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
            local_rank: rank on this node, None if there is only one.
            log_dir: folder for files if the profiler was given none.
        """
        self._stage = stage
        self._local_rank = local_rank
        self.dirpath = self.dirpath or log_dir

    def teardown(self, stage: str | None) -> None:
        """Close the streams."""
        self._write_stream = None
        if self._output_file is not None:
            self._output_file.close()
            self._output_file = None

    @contextmanager
    def profile(self, action_name: str) -> Iterator[str]:
        """Measure an action, the `with` block.

        Example:
            >>> with trainer.profiler.profile("load the table"):
            ...     table = load()
        """
        self.start(action_name)
        try:
            yield action_name
        finally:
            self.stop(action_name)

    def describe(self) -> None:
        """Write the report to its file, or print it on the first rank of each node."""
        try:
            self._prepare_streams()
            text = self.summary()
            if text and self._write_stream is not None:
                self._write_stream(text)
        finally:
            self.teardown(self._stage)

    @property
    def local_rank(self) -> int:
        """Rank on this node."""
        return self._local_rank or 0

    def _prepare_streams(self) -> None:
        if self.filename and self.dirpath:
            self._output_file = self._open(self._prepare_filename(), "a")
            self._write_stream = self._output_file.write
        else:
            self._write_stream = log.info if self.local_rank == 0 else None

    def _open(self, name: str, mode: str) -> Any:
        """Open a file in `dirpath`, which is made if it is missing."""
        import fsspec

        fs, folder = fsspec.core.url_to_fs(os.fspath(self.dirpath or "."))
        fs.makedirs(folder, exist_ok=True)
        return fs.open(f"{folder}/{name}", mode)

    def _prepare_filename(self, action_name: str | None = None, extension: str = ".txt") -> str:
        """Return `<stage>-<filename>-<rank>-<action>`, of those set, safe on all file systems."""
        rank = None if self._local_rank is None else str(self._local_rank)
        name = "-".join(
            part
            for part in (self._stage, self.filename or None, rank, action_name)
            if part is not None
        )
        return (re.sub(r"""[\\/:*?"<>|\n\r\t_]+""", "_", name).strip() or "profile") + extension

    def _stats_to_str(self, stats: Mapping[str, str]) -> str:
        """Put the reports of several actions below one another."""
        lines = [f"{self._stage.upper()} Profiler Report" if self._stage else "Profiler Report"]
        for action, report in stats.items():
            lines += [
                f"Profile stats for: {action}"
                + ("" if self._local_rank is None else f" rank: {self._local_rank}"),
                report,
            ]
        return os.linesep.join(lines)

    def __getstate__(self) -> StateDict:
        return self.__dict__ | {
            "_output_file": None,
            "_write_stream": None,
            "_lightning_module": None,
        }


class PassThroughProfiler(Profiler):
    """Sees nothing: `trainer.profiler` when none was asked for."""

    def start(self, action_name: str) -> None:
        pass

    def stop(self, action_name: str) -> None:
        pass
