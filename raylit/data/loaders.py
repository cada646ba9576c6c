"""From what the user gave as data to the loader that a rank reads: checked, sharded, counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raylit.data.combined import CombinedLoader, is_iterable, length_of
from raylit.data.resumable import resumable
from raylit.data.sampler import shard, with_short_batches, without_shuffle
from raylit.errors import DataError

if TYPE_CHECKING:
    from raylit.parallel import World

SHARD_MODES = {"train": "train", "val": "evaluate", "test": "evaluate", "predict": "predict"}


def prepare(data: Any, stage: str, world: World, *, limit: int | float, distribute: bool, overfit: bool, origin: str) -> CombinedLoader:
    """Return the loader of one rank for one stage, with its limits set.

    Args:
        data: a loader, any iterable, a collection of them, or a CombinedLoader.
        stage: `train`, `val`, `test` or `predict`.
        world: this rank's place among all.
        limit: `limit_<stage>_batches`: a number of batches, or a fraction of them.
        distribute: whether to shard over the ranks.
        overfit: whether to read in order, whatever the loader says.
        origin: where the data came from, for error texts.

    Raises:
        DataError: it cannot be iterated, or the limit leaves nothing.
    """
    loader = data if isinstance(data, CombinedLoader) else CombinedLoader(data, "max_size_cycle" if stage == "train" else "sequential")
    if stage == "train" and loader.mode == "sequential":
        raise DataError("CombinedLoader(mode='sequential') cannot be trained on. Use mode='min_size', 'max_size' or 'max_size_cycle'.")
    if stage == "predict" and loader.mode != "sequential":
        raise DataError(f"CombinedLoader(mode={loader.mode!r}) cannot be predicted on. Use mode='sequential'.")
    ready = []
    for one in loader.flattened:
        if not is_iterable(one):
            raise DataError(
                f"{origin} gave {one!r} ({type(one).__name__}), which cannot be iterated. Give a DataLoader, an iterable, or a list or dict of them."
            )
        one = without_shuffle(one) if overfit else with_short_batches(one) if stage == "predict" else one
        ready.append(shard(one, world, SHARD_MODES[stage]) if distribute else one)
    loader.flattened = ready
    if stage == "train":
        loader.readers = [resumable(one, world.rank, world.size, number) for number, one in enumerate(ready)]
    loader.limits = [num_batches(stage, length_of(one), limit) for one in ready]
    return loader


def num_batches(stage: str, length: float, limit: int | float) -> float:
    """Return how many of `length` batches a rank reads: `limit` of them if it is an int, that fraction, rounded down, if a float.

    Raises:
        DataError: a fraction of a loader without length, or a fraction so small that it leaves no batch.
    """
    if length == 0 or limit == 0:
        return 0
    if isinstance(limit, int):
        return min(length, limit)
    if limit == 1.0:
        return length
    if length == float("inf"):
        raise DataError(
            f"limit_{stage}_batches={limit} is a fraction, but the {stage} loader has no length. Give a number of batches, or 1.0 for all."
        )
    number = int(length * limit)
    if number == 0:
        raise DataError(
            f"limit_{stage}_batches={limit} of the {int(length)} batches of the {stage} loader is less than one."
            f" Give limit_{stage}_batches=1 for one batch, or at least {1.0 / length}."
        )
    return number
