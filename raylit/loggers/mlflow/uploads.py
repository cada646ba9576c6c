"""Copies checkpoints into the artifacts of a run.

In a thread of its own, so that metrics need not wait for large files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from raylit.loggers.queue import BackgroundWriter
from raylit.runtime.messages import warn_once

if TYPE_CHECKING:
    from raylit.core.callback import Checkpoint

MAX_UPLOAD_S = 3600.0
SETTINGS = (
    "monitor",
    "mode",
    "save_last",
    "save_top_k",
    "save_weights_only",
    "_every_n_train_steps",
)


class Upload(NamedTuple):
    """A checkpoint, and the contents of `metadata.yaml` and `aliases.txt` beside it."""

    path: str
    metadata: dict[str, object]
    aliases: list[str]
    is_link: bool  # made for this upload, removed after it


class CheckpointUploader:
    """Uploads each checkpoint of a callback once.

    Args:
        send: uploads; called on the thread, and again if it raises.
        run_id: the run, in whose name links are made.
    """

    def __init__(self, send: Callable[[list[Upload]], None], run_id: str) -> None:
        self._send = send
        self._run_id = run_id
        self._writer: BackgroundWriter[Upload] | None = None
        self._done: dict[str, int] = {}  # path: its time
        self._has_linked = False

    def add(self, callback: Checkpoint, *, link: bool) -> None:
        """Queue the checkpoints of `callback` that are new.

        With `link`, they may be deleted before it is their turn.
        """
        best_path = getattr(callback, "best_model_path", "")
        scores = {
            getattr(callback, "last_model_path", ""): getattr(callback, "current_score", None)
        }
        scores |= getattr(callback, "best_k_models", {})
        scores[best_path] = getattr(callback, "best_model_score", None)
        for path, score in scores.items():
            if "://" in path:
                warn_once(
                    f"MLFlowLogger(log_model=...) copies local checkpoints only; {path} stays where"
                    " it is."
                )
            # By its time: a checkpoint that is written anew under its name is uploaded again
            if not os.path.exists(path) or self._done.get(path) == (
                time_ns := os.stat(path).st_mtime_ns
            ):
                continue
            self._done[path] = time_ns
            metadata: dict[str, object] = {
                "score": None if score is None else float(score),
                "original_filename": Path(path).name,
                "Checkpoint": {
                    name: getattr(callback, name) for name in SETTINGS if hasattr(callback, name)
                },
            }
            aliases = ["latest", "best"] if path == best_path else ["latest"]
            linked = self._link(path, time_ns) if link else None
            if self._writer is None:
                self._writer = BackgroundWriter(
                    self._send, "checkpoints to MLflow", max_batch=1, interval_s=0
                )
            self._writer.put([Upload(linked or path, metadata, aliases, linked is not None)])

    def close(self) -> None:
        """Wait until all is uploaded, or it takes too long."""
        writer = self._writer
        self._writer = None
        if writer is not None:
            writer.close(busy_timeout_s=MAX_UPLOAD_S)

    def _link(self, path: str, time_ns: int) -> str | None:
        """Give the file a second name that outlives its deletion.

        None where the file system has no such thing.
        """
        folder = os.path.join(os.path.dirname(path), f".mlflow_uploads-{self._run_id}")
        if not self._has_linked:
            shutil.rmtree(folder, ignore_errors=True)  # left by a process that was killed
        self._has_linked = True
        linked = os.path.join(folder, str(time_ns), os.path.basename(path))
        try:
            os.makedirs(os.path.dirname(linked))
            os.link(path, linked)
        except OSError:
            remove_link(linked)
            return None
        return linked


def remove_link(path: str) -> None:
    """Remove the second name of a file that was uploaded, and the folders made for it."""
    folder = os.path.dirname(path)
    shutil.rmtree(folder, ignore_errors=True)
    # Not with what is in it: the fit may be making the next link there
    with contextlib.suppress(OSError):
        os.rmdir(os.path.dirname(folder))


def best_tags(callback: Checkpoint) -> dict[str, str]:
    """Return path and score of the best checkpoint of `callback`, as tags.

    Empty if there is none.
    """
    path = getattr(callback, "best_model_path", "")
    score = getattr(callback, "best_model_score", None)
    tags = {"raylit.best_model_path": str(path)} if path else {}
    return (
        tags if score is None or not path else tags | {"raylit.best_model_score": str(float(score))}
    )
