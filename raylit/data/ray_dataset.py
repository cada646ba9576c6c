"""Reading a `ray.data.Dataset`.

Batches of tensors, in an order that is a function of seed and epoch, dealt out to the ranks. The
only place for ray.data.

Alone, a rank reads all rows. Of several, Ray workers all:

    training        each reads its stream of `Dataset.streaming_split(equal=True)`: equally many
                    rows each; of n ranks' rows up to n - 1 are left out
    evaluation      likewise with `equal=False`: every row once, some ranks with more than others
    prediction, and evaluation of several loaders or of a materialized Dataset
                    each reads one consecutive piece of the rows, which are computed once and kept
                    in Ray's object store: the ranks' results, one after the other, are in the order
                    of the data, and no rank waits for another to begin a loader

Ray hands out whole blocks, so which rows a rank gets is another matter than in
`sampling/sampler.py`; with `preserve_order` it is the same each time.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeGuard

from raylit.errors import ConfigError, DataError
from raylit.runtime.aliases import Arguments, Batch, StateDict
from raylit.runtime.messages import info, is_verbose, warn

if TYPE_CHECKING:
    import torch
    from ray.data import DataIterator, Dataset
    from ray.data.collate_fn import NumpyBatchCollateFn

    from raylit.parallel import World


class RayDataLoader:
    """The way to read a `ray.data.Dataset`: give or return it wherever a DataLoader can be.

    A Dataset by itself is read as `RayDataLoader(dataset)`.

    A batch is a dict with a tensor for each column, or the result of `collate_fn`; on several ranks
    each has batches of its own. An epoch is the Dataset executed once. It has a length if Ray knows
    the number of rows without reading them: of a materialized Dataset, and of Parquet files and
    ranges whose rows are at most mapped one to one; otherwise the length is not known before the
    end.

    Args:
        dataset: what to read.
        batch_size: rows in a batch; None: blocks as they come.
        shuffle: whether all rows come in another order in each epoch (`Dataset.random_shuffle`),
            for which they all have to be read first.
        local_shuffle_buffer_size: instead, or besides: how many rows, as they come, each batch is
            drawn from. It begins at once.
        seed: of both, together with the epoch. None: that of `seed_everything`, or 0.
        prefetch_batches: batches to fetch, format and collate ahead, in threads.
        dtypes: of the tensors, or by column; not with `collate_fn`.
        collate_fn: makes a batch of a dict with a numpy array for each column; or a
            `ray.data.collate_fn` object, which says what it wants.
        drop_last: whether to leave out the last batch if it is short.
        pin_memory: whether tensors lie in pinned memory, for faster copies to a GPU.
        preserve_order: whether rows come in the same order each time, so that a fit that goes on
            within an epoch is exact. False: blocks come as soon as they are ready.

    Raises:
        ConfigError: `dataset` is something else, or an argument is out of range or contradicts
            another.

    Source: https://docs.ray.io/en/latest/train/user-guides/data-loading-preprocessing.html

    Example:
        >>> train = ray.data.read_parquet("s3://bucket/train").map_batches(preprocess)
        >>> trainer.fit(
        ...     model, RayDataLoader(train, batch_size=64, local_shuffle_buffer_size=10_000)
        ... )
    """

    def __init__(
        self,
        dataset: Any,  # checked below; a config may name a function that makes it
        batch_size: int | None = 256,
        *,
        shuffle: bool = False,
        local_shuffle_buffer_size: int | None = None,
        seed: int | None = None,
        prefetch_batches: int = 1,
        dtypes: torch.dtype | dict[str, torch.dtype] | None = None,
        collate_fn: Callable[[Any], Batch] | None = None,
        drop_last: bool = False,
        pin_memory: bool = False,
        preserve_order: bool = True,
    ) -> None:
        if not is_dataset(dataset):
            hint = (
                " Give the Dataset it was made from: raylit makes the iterators."
                if _is_iterator(dataset)
                else ""
            )
            raise ConfigError(
                f"RayDataLoader reads a ray.data.Dataset, but got a {type(dataset).__name__}.{hint}"
            )
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("local_shuffle_buffer_size", local_shuffle_buffer_size, batch_size or 1),
            ("prefetch_batches", prefetch_batches, 0),
        ):
            if value is not None and (
                not isinstance(value, int) or isinstance(value, bool) or value < least
            ):
                raise ConfigError(
                    f"RayDataLoader({name}={value!r}): give a whole number of at least {least}."
                )
        if local_shuffle_buffer_size is not None and batch_size is None:
            raise ConfigError(
                "RayDataLoader(local_shuffle_buffer_size=...) draws batches of a given size: give"
                " batch_size too."
            )
        if dtypes is not None and collate_fn is not None:
            raise ConfigError(
                "RayDataLoader got both dtypes and collate_fn. Let collate_fn make the tensors of"
                " the right dtype."
            )
        self.data = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.shuffle = shuffle
        self.local_shuffle_buffer_size = local_shuffle_buffer_size
        self.preserve_order = preserve_order
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self._options: Arguments = {
            "prefetch_batches": prefetch_batches,
            "dtypes": dtypes,
            "collate_fn": collate_fn,
            "pin_memory": pin_memory,
        }
        self.epoch = 0
        self._world: World | None = None  # of the ranks that share the rows
        self._equal = False
        self._shard: object = None  # what this rank reads of them
        self._num_rows: int | None = None  # of this rank, where that is known
        self._num_read = self._skip = 0

    # ---- how long ----

    def __len__(self) -> int:
        """Return how many batches this rank reads.

        Raises:
            TypeError: that is not known.
        """
        rows = self._num_rows if self._world is not None else _rows_of(self.data)
        if rows is None or self.batch_size is None:
            raise TypeError(
                "How many batches this Dataset makes is not known before it has been read."
            )
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    @property
    def is_certain(self) -> bool:
        """Whether all ranks have equally many batches, or this rank is alone."""
        return self._world is None or (self._equal and self.batch_size is not None)

    @property
    def is_shared(self) -> bool:
        """Whether several ranks share the rows."""
        return self._world is not None

    @property
    def is_shuffled(self) -> bool:
        """Whether the order of rows differs from epoch to epoch."""
        return self.shuffle or self.local_shuffle_buffer_size is not None

    # ---- what a rank reads ----

    def prepared(
        self, stage: str, world: World | None, *, overfit: bool, among_several: bool
    ) -> RayDataLoader:
        """Return a copy for one rank and one stage; with several ranks all come here.

        Args:
            stage: `train`, `val`, `test` or `predict`.
            world: the ranks that share the rows; None: this one reads all.
            overfit: whether to read in order.
            among_several: whether there are other loaders for the stage.

        Raises:
            DataError: the ranks are no Ray workers, or rank 0 could not split the Dataset.
        """
        one = copy.copy(self)
        one.epoch = one._num_read = one._skip = 0
        if overfit:
            one.shuffle = False
            one.local_shuffle_buffer_size = None
        if stage == "predict":
            one.drop_last = False
        if world is None or world.size == 1:
            return one
        one._world = world
        one._equal = stage == "train"
        in_pieces = stage == "predict" or (
            stage != "train" and (among_several or _is_materialized(self.data))
        )
        one._share(in_pieces)
        return one

    def _share(self, in_pieces: bool = False) -> None:
        """Let rank 0 split the rows, and take this rank's part."""
        from ray import cloudpickle

        world = self._world
        assert world is not None
        made: list[tuple[DataIterator, int | None]] = []
        told: list[object] = [None, None]
        if world.is_zero:
            try:
                _check_cluster(world.size)
                made = self._pieces(world.size) if in_pieces else self._streams(world.size)
                told[0] = [(cloudpickle.dumps(part), rows) for part, rows in made]
            # Whatever Ray or the user's own functions raise; the others wait to hear of it
            except Exception as error:
                told[1] = f"{type(error).__name__}: {error}"
        parts, problem = world.broadcast_object(told)
        if problem is not None:
            raise DataError(
                f"The Ray Dataset could not be split among the {world.size} ranks: {problem}"
            )
        pickled, self._num_rows = parts[world.rank]
        # rank 0 keeps what it made: with it the actor ends that serves the streams
        self._shard = made[0][0] if world.is_zero else cloudpickle.loads(pickled)

    def _streams(self, number: int) -> list[tuple[DataIterator, int | None]]:
        rows = _rows_of(self.data)
        parts = self._ordered().streaming_split(number, equal=self._equal)
        return [
            (part, rows // number if self._equal and rows is not None else None) for part in parts
        ]

    def _pieces(self, number: int) -> list[tuple[DataIterator, int | None]]:
        whole = self._ordered().materialize()
        rows = whole.count()
        parts = whole.split_at_indices([rows * rank // number for rank in range(1, number)])
        return [(part.iterator(), part.count()) for part in parts]

    def _ordered(self) -> Dataset:
        """Return the Dataset as this epoch reads it.

        It is a copy, so that these settings do not change the user's.
        """
        dataset = type(self.data).copy(self.data, _deep_copy=True)
        dataset.context.execution_options.preserve_order = self.preserve_order
        if not is_verbose():
            dataset.context.enable_progress_bars = False
            _quieten()
        return (
            dataset.random_shuffle(seed=_hash(self.seed, self.epoch)) if self.shuffle else dataset
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch; the loop calls it."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        """Begin an epoch, or the rest of the one that `load_state_dict` told of."""
        skip = self._skip
        self._skip = 0
        self._num_read = skip
        if self._world is None:
            source = self._ordered().iterator()
        else:
            if self.shuffle and self._equal:
                self._share()  # streams, once made, repeat one order
            source = self._shard
        return self._read(source, skip)

    def _read(self, source: Any, skip: int) -> Iterator[object]:
        options = dict(self._options)
        collate = self._options["collate_fn"]
        if collate is not None and not _is_ray_collate(collate):
            options["collate_fn"] = _wrapped(collate)
        rank = self._world.rank if self._world is not None else 0
        if skip:
            info(
                f"A Ray Dataset cannot be entered in the middle: {skip} batches of this epoch are"
                " read again and dropped."
            )
        batches = iter(
            source.iter_torch_batches(
                batch_size=self.batch_size,
                drop_last=self.drop_last,
                local_shuffle_buffer_size=self.local_shuffle_buffer_size,
                local_shuffle_seed=_hash(self.seed, self.epoch, rank),
                # By default Ray brings batches to the worker's device, which the loop does itself
                device="cpu",
                **options,
            )
        )
        try:
            for number, batch in enumerate(batches):
                if number >= skip:
                    self._num_read = number + 1
                    yield batch
        except (TypeError, ValueError) as error:
            columns = [] if collate is not None else _columns_of_text(source)
            if not columns:
                raise
            names = ", ".join(map(repr, columns))
            raise DataError(
                f"The Ray Dataset's column {names} holds text, which cannot be a tensor. Leave it"
                f" out with dataset.drop_columns({columns!r}), make numbers of it with"
                " dataset.map_batches(...), or say what a batch is: RayDataLoader(dataset,"
                " collate_fn=...), which gets a dict of numpy arrays."
            ) from error
        finally:
            batches.close()  # so that Ray stops reading for it

    # ---- in the middle of an epoch ----

    def state_dict(self) -> StateDict:
        """Return how far the epoch was read, and by whom, as plain data."""
        return {
            "num_read": self._num_read,
            "seed": self.seed,
            "read_by": [self._num_ranks, self.batch_size],
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Let the next epoch begin where `state_dict` was taken."""
        self._skip = state["num_read"]
        self.seed = state["seed"]
        ranks, batch_size = state["read_by"]
        if [ranks, batch_size] != [self._num_ranks, self.batch_size]:
            warn(
                f"The epoch of a Ray Dataset was begun by {ranks} ranks with batches of"
                f" {batch_size} rows, and goes on with {self._num_ranks} of {self.batch_size}. Ray"
                " deals out the rows in another way now: in the rest of this epoch some come twice"
                " or not at all."
            )
        elif not self.preserve_order:
            warn(
                "The Ray Dataset is read with preserve_order=False: in the rest of this epoch some"
                " rows may come twice or not at all."
            )

    @property
    def _num_ranks(self) -> int:
        return self._world.size if self._world is not None else 1


def as_loader(data: object, origin: str) -> object:
    """Return a loader for `data` if it is a Ray Dataset, else `data` itself.

    Raises:
        DataError: it is an iterator that was made of one.
    """
    if _is_iterator(data):
        raise DataError(
            f"{origin} gave a {type(data).__name__} of Ray Data. Give the Dataset it was made from:"
            " raylit splits it among the ranks."
        )
    if not is_dataset(data):
        return data
    loader = RayDataLoader(data)
    info(
        f"{origin} gave a Ray Dataset: it is read in batches of {loader.batch_size} rows. Give"
        " raylit.RayDataLoader(dataset, batch_size=...) for others."
    )
    return loader


def is_dataset(data: object) -> TypeGuard[Dataset]:
    """Tell whether `data` is a `ray.data.Dataset`. ray.data is not imported for it.

    Where it is not, there is none.
    """
    return "ray.data" in sys.modules and isinstance(data, sys.modules["ray.data"].Dataset)


def _is_iterator(data: object) -> bool:
    return "ray.data" in sys.modules and isinstance(data, sys.modules["ray.data"].DataIterator)


def _is_materialized(dataset: object) -> bool:
    from ray.data.dataset import MaterializedDataset

    return isinstance(dataset, MaterializedDataset)


def _columns_of_text(source: DataIterator) -> list[str]:
    """Return the columns of text, bytes or other objects; none if that is not known."""
    schema = source.schema()
    if schema is None:
        return []
    kinds = zip(schema.names, map(str, schema.types), strict=True)
    return [
        name
        for name, kind in kinds
        if any(word in kind for word in ("string", "binary", "object", "str"))
        and not kind.startswith("struct")
    ]


def _rows_of(dataset: Dataset) -> int | None:
    """Return the number of rows, None if they would have to be read to be counted."""
    rows: int | None = dataset._meta_count()
    return rows


def _check_cluster(num_ranks: int) -> None:
    """Warn if there is no CPU left to read with.

    Raises:
        DataError: the ranks are no Ray workers, who alone can share streams.
    """
    import ray

    context = ray.get_runtime_context() if ray.is_initialized() else None
    if context is None or context.get_actor_id() is None:
        raise DataError(
            "They are not Ray workers. Start them with Trainer(num_workers=...), or give each rank"
            " its own data."
        )
    taken = num_ranks * context.get_assigned_resources().get("CPU", 0)
    there = ray.cluster_resources().get("CPU", 0)
    if there - taken < 1:
        warn(
            f"The {num_ranks} workers have taken {taken:g} of the {there:g} CPUs of the Ray"
            " cluster, and Ray Data needs at least one to read with: it will wait until there is"
            " one. Leave it some: fewer workers, Trainer(resources_per_worker={'CPU': 0.5}), or"
            " a larger cluster.",
            RuntimeWarning,
        )


def _quieten() -> None:
    """Keep Ray Data's progress from the screen, where raylit shows its own.

    It stays in Ray's log files.
    """
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__module__ == "ray._private.log":  # that of the screen
            handler.setLevel(max(handler.level, logging.WARNING))
    # Which tells how to switch it on
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


def _is_ray_collate(function: object) -> bool:
    from ray.data.collate_fn import ArrowBatchCollateFn, NumpyBatchCollateFn, PandasBatchCollateFn

    return isinstance(function, (ArrowBatchCollateFn, NumpyBatchCollateFn, PandasBatchCollateFn))


def _wrapped(function: Callable[[object], object]) -> NumpyBatchCollateFn:
    """Return a function as the object that Ray wants."""
    from ray.data.collate_fn import NumpyBatchCollateFn

    class Collate(NumpyBatchCollateFn):
        def __call__(self, batch: Batch) -> Batch:
            return function(batch)

    return Collate()


def _hash(*numbers: int) -> int:
    """Return 31 bits that look random."""
    return (
        int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=4).digest(), "little")
        >> 1
    )
