"""From the user's data to the loader that a rank reads: checked, sharded, counted."""

from __future__ import annotations

import sys
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING

from torch.utils.data import BatchSampler, RandomSampler

from raylit.data.combined import CombinedLoader, is_iterable, length_of
from raylit.data.positioned import PositionedLoader
from raylit.data.ray_dataset import RayDataLoader, as_loader
from raylit.data.sampling.plan import planned
from raylit.data.sampling.sampler import (
    ShardedSampler,
    shard,
    with_short_batches,
    without_shuffle,
)
from raylit.data.sharding import make_even
from raylit.errors import DataError, DataTypeError, foreign_hint
from raylit.runtime.aliases import Loaders
from raylit.runtime.messages import info, warn

if TYPE_CHECKING:
    from raylit.parallel import World
    from raylit.parallel.strategy import Uneven

SHARD_MODES = {"train": "train", "val": "evaluate", "test": "evaluate", "predict": "predict"}


def prepare(
    data: object,
    stage: str,
    world: World,
    *,
    limit: int | float,
    distribute: bool,
    overfit: bool,
    origin: str,
    uneven: Uneven = "finish",
    elastic: bool = False,
    seed: int = 0,
) -> CombinedLoader:
    """Return the loader of one rank for one stage, with its limits set.

    Args:
        data: a loader, any iterable, a `ray.data.Dataset`, a collection of them, or a
            CombinedLoader.
        stage: `train`, `val`, `test` or `predict`.
        world: this rank's place among all.
        limit: `limit_<stage>_batches`: a number of batches, or a fraction of them.
        distribute: whether to shard over the ranks.
        overfit: whether to read in order, whatever the loader says.
        origin: where the data came from, for error texts.
        uneven: what to do if the ranks have different numbers of training batches; see `even`.
        elastic: whether the number of ranks may change, so that one alone is to read in the order
            of many.
        seed: of the run, for what is random in the samples.

    Raises:
        DataError: it cannot be iterated, the limit leaves nothing, or a rank has no training batch
            while others have.
    """
    loader = (
        data
        if isinstance(data, CombinedLoader)
        else CombinedLoader(data, "max_size_cycle" if stage == "train" else "sequential")
    )
    _check_mode(loader, stage)
    ready: list[object] = []
    for given in loader.flattened:
        one = arrow_loader(as_loader(given, origin), origin)
        if not is_iterable(one):
            raise DataTypeError(
                "An invalid dataloader was passed: "
                f"{origin} gave {one!r} ({type(one).__name__}), which cannot be iterated. Give a"
                " DataLoader, an iterable, a Ray Dataset, or a list or dict of them."
                f"{foreign_hint(one)}"
            )
        warn_of(one, stage, overfit, origin)
        ranks = world if distribute else None
        drops = stage == "train" and uneven == "drop"
        if isinstance(one, RayDataLoader):
            several = len(loader.flattened) > 1
            ready.append(one.prepared(stage, ranks, overfit=overfit, among_several=several))
        elif isinstance(one, PositionedLoader):
            ready.append(one.prepared(stage, ranks, overfit=overfit, drop=uneven == "drop"))
        else:
            one = _in_order(one, stage, overfit)
            mode = "drop" if drops else SHARD_MODES[stage]
            ready.append(shard(one, world, mode, elastic) if distribute else one)
    if not ready:
        warn(f"{origin} gave no loader.")
    loader.flattened = ready
    loader.watch = None  # a loader that is given may have been read before
    loader.even = None
    agree_on_salts(ready, world)
    loader.limit_of = None
    if stage == "train":
        loader.readers = [
            planned(one, world.rank, world.size, number, seed)
            for number, one in enumerate(loader.readers)
        ]
        loader.limit_of = partial(num_batches, stage, limit=limit)
        loader.recount()
        loader.even = make_even(loader.num_batches(), ready, world, uneven)
    else:
        lengths = [length_of(one) for one in ready]
        most = lengths
        if distribute and isinstance(limit, float) and limit != 1.0:
            # One decision for all ranks, whose shares differ by a batch: by the longest
            most = [max(ranks) for ranks in zip(*world.all_gather_object(lengths), strict=True)]
        loader.limits = [
            min(length, num_batches(stage, longest, limit))
            for length, longest in zip(lengths, most, strict=True)
        ]
    return loader


def _check_mode(loader: CombinedLoader, stage: str) -> None:
    if stage == "train" and loader.mode == "sequential":
        raise DataError(
            'Training does not support the `CombinedLoader(mode="sequential")` mode. '
            "CombinedLoader(mode='sequential') cannot be trained on. Use mode='min_size',"
            " 'max_size' or 'max_size_cycle'."
        )
    if stage == "predict" and loader.mode != "sequential":
        raise DataError(
            '`trainer.predict()` only supports the `CombinedLoader(mode="sequential")` mode. '
            f"CombinedLoader(mode={loader.mode!r}) cannot be predicted on. Use mode='sequential'."
        )


def _in_order(loader: Loaders, stage: str, overfit: bool) -> Loaders:
    """Return the loader: unshuffled to overfit, with short last batches to predict, else as is."""
    if overfit:
        return without_shuffle(loader)
    return with_short_batches(loader) if stage == "predict" else loader


def arrow_loader(data: object, origin: str) -> object:
    """Return a loader for `data` if it is an ArrowDataset, else `data` itself."""
    arrow = sys.modules.get("raylit.data.arrow")  # where nobody has imported it, there is none
    if arrow is None or not isinstance(data, arrow.ArrowDataset):
        return data
    loader = data.loader()
    info(
        f"{origin} gave an ArrowDataset: it is read in order, in batches of {loader.batch_size}"
        " rows. Give dataset.loader(batch_size=..., shuffle=True) for others."
    )
    return loader


def agree_on_salts(loaders: list[object], world: World) -> None:
    """Let the seeds that users gave to samplers' own generators be those of rank 0 on all ranks."""
    if world.size == 1:
        return
    sharded = [
        found
        for one in loaders
        for found in (
            getattr(one, "sampler", None),
            getattr(one, "batch_sampler", None),
        )
        if isinstance(found, ShardedSampler)
    ]
    told = world.all_gather_object([one.salts for one in sharded])[0]
    for one, salts in zip(sharded, told, strict=False):
        if len(one.salts) == len(salts):
            one.salts = salts


def warn_of(loader: Loaders, stage: str, overfit: bool, origin: str) -> None:
    """Warn of settings that are possible, but hardly meant."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    sampler = getattr(loader, "sampler", None)
    if type(batch_sampler) is BatchSampler:
        sampler = batch_sampler.sampler
    is_shuffled = isinstance(sampler, RandomSampler) or (
        isinstance(loader, (RayDataLoader, PositionedLoader)) and loader.is_shuffled
    )
    if is_shuffled and overfit:
        warn(
            f"The {stage} loader shuffles, but overfit_batches reads it in order, so that the same"
            " batches come in each epoch."
        )
    elif is_shuffled and stage != "train":
        warn(
            f"The {stage} loader shuffles: its values and predictions come in another order each"
            " time. Use DataLoader(shuffle=False)."
        )
    if length_of(loader) == 0:
        warn(f"{origin} gave a loader without a single batch.")


def num_batches(stage: str, length: float, limit: int | float) -> float:
    """Return how many of `length` batches a rank reads.

    `limit` of them if it is an int, that fraction, rounded down, if a float.

    Raises:
        DataError: a fraction of a loader without length, or a fraction so small that it leaves no
            batch.
    """
    if length == 0 or limit == 0:
        return 0
    # Before the comparison below: 1 is one batch, 1.0 all of them
    if isinstance(limit, Integral):  # numpy's too, which may be set while it runs
        return min(length, int(limit))
    if limit == 1.0:
        return length
    if length == float("inf"):
        raise DataError(
            f"When using an `IterableDataset`, `Trainer(limit_{stage}_batches)` must be `1.0` or an"
            " int. "
            f"limit_{stage}_batches={limit} is a fraction, but the {stage} loader has no length."
            " Give a number of batches, or 1.0 for all."
        )
    number = int(length * limit)
    if number == 0:
        raise DataError(
            f"limit_{stage}_batches={limit} of the {int(length)} batches of the {stage} loader is"
            f" less than one. Give limit_{stage}_batches=1 for one batch, or at least"
            f" {1.0 / length}."
        )
    return number
