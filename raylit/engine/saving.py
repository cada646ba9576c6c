"""Saving a run, as all ranks do it together."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from raylit.checkpoint import io, sharded
from raylit.engine.state import dump
from raylit.errors import NotSavedError

if TYPE_CHECKING:
    from raylit.engine.run import Run


def write(
    run: Run,
    path: str | os.PathLike[str],
    weights_only: bool = False,
    storage_options: dict[str, object] | None = None,
) -> None:
    """Write the run to a file, or to a folder where its strategy saves such.

    To be called on all ranks.

    Raises:
        NotSavedError: it could not be written; what stood at `path` is untouched. On all ranks, if
            one could not.
    """
    strategy = run.strategy
    checkpoint = dump(run, weights_only, parts=strategy.saves_folders)
    if strategy.saves_folders:
        sharded.save(run.world, checkpoint, path, in_background=strategy.saves_in_background)
        run.world.barrier()
        return
    run.world.from_zero(
        lambda: io.write(run.trainer.checkpoint_io, checkpoint, path, storage_options),
        NotSavedError,
    )
