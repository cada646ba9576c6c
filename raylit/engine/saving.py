"""Saving a run, as all ranks do it together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from raylit.checkpoint import folder, sharded
from raylit.checkpoint.format import load, save
from raylit.engine.state import dump
from raylit.errors import NotSavedError
from raylit.runtime.storage import is_url

if TYPE_CHECKING:
    from raylit.engine.run import Run


def write(
    run: Run, path: str | os.PathLike[str], weights_only: bool = False, storage_options: Any = None
) -> None:
    """Write the run to a file, or to a folder where its strategy saves such.

    To be called on all ranks.

    Raises:
        NotSavedError: it could not be written; what stood at `path` is untouched. On all ranks, if
            one could not.
    """
    strategy = run.strategy
    judged = run.validations.saved if run.validations is not None else None
    if judged is not None:
        _copy(run, judged, os.fspath(path))
        return
    checkpoint = dump(run, weights_only, parts=strategy.saves_folders)
    if strategy.saves_folders:
        sharded.save(run.world, checkpoint, path, in_background=strategy.saves_in_background)
        run.world.barrier()
        return
    run.world.from_zero(
        lambda: save(checkpoint, path, storage_options=storage_options), NotSavedError
    )


def _copy(run: Run, judged: str, path: str) -> None:
    """Let the checkpoint that a validation was of be the one that is saved."""

    def copy() -> None:
        if is_url(judged) or is_url(path):
            save(load(judged), path)
        else:
            try:
                folder.give_second_name(judged, path)
            except OSError as error:
                raise NotSavedError(
                    f"The checkpoint {path} could not be written: {error}."
                ) from error

    run.world.from_zero(copy, NotSavedError)
