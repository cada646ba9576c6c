"""Saving the state of rank 0, after an exception that perhaps no other rank knows of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from raylit.checkpoint import io

if TYPE_CHECKING:
    from raylit.core.trainer import RunningTrainer


def write_alone(trainer: RunningTrainer, path: str, weights_only: bool = False) -> None:
    """Write the run to a file, without waiting for other ranks.

    Raises:
        NotSavedError: it could not be written.
    """
    assert trainer.run is not None
    checkpoint = trainer.run.dump(weights_only, together=False)
    io.write(trainer.checkpoint_io, checkpoint, path)
