"""ArrowLoader: batches of an ArrowDataset in its own order, for one rank, from any batch on."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from raylit.data.arrow.ahead import ahead
from raylit.data.arrow.columns import Encoding, Field, Layout, Rows, concat
from raylit.data.arrow.dataset import ArrowDataset
from raylit.data.arrow.memory import StoreReader
from raylit.data.arrow.order import Share, all_positions, mixed, permutation, windows
from raylit.data.arrow.statistics import plain_vocabulary, vocabulary_of
from raylit.data.arrow.streaming import WindowReader
from raylit.data.positioned import PositionedLoader
from raylit.data.worker_processes import begin_reading
from raylit.errors import ConfigError, DataError
from raylit.runtime import rng
from raylit.runtime.aliases import Batch, Loaders, StateDict
from raylit.runtime.messages import warn

if TYPE_CHECKING:
    from raylit.parallel import World

CHUNK_ROWS = 16_384  # gathered at a time: enough that a batch of 256 costs little of Python's time
CHUNK_BYTES = 64 << 20  # at most, where rows are large: several chunks are in memory at a time
AHEAD = 2  # chunks that are made while the batches of one are given
SHARE_MODES = {"train": "train", "val": "evaluate", "test": "evaluate", "predict": "predict"}


class ChunkReader(Protocol):
    """A source of this rank's rows."""

    def chunks(self, start: int, stop: int) -> Iterator[Rows]:
        """Give the rows from number `start` to `stop`, some at a time."""


class ArrowLoader(PositionedLoader):
    """Reads an `ArrowDataset` in batches: shuffled, dealt out to the ranks, and from any batch on.

    The order of rows is a function of (seed, epoch, position): of all rows where they are in memory
    or mapped, within windows of several row groups where they are streamed. Rank r of n takes the
    positions r, r + n, ... of it, whatever the number of `num_workers`. Rows are read and decoded
    by a thread, or by worker processes, while the step before computes.

    Args:
        dataset: what to read.
        batch_size: rows in a batch.
        shuffle: whether the rows come in another order in each epoch.
        seed: of the order, together with the epoch. None: that of `seed_everything`, or 0.
        drop_last: whether to leave out the last batch if it is short.
        num_workers: processes that read, and run `transform` and `collate_fn`; 0: a thread reads,
            and they run in the training process.
        pin_memory: whether tensors lie in pinned memory, for copies that a GPU need not wait for.
            None: where there is a GPU.

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> import pyarrow as pa
        >>> dataset = ArrowDataset(pa.table({"x": [0.0, 1.0, 2.0]}))
        >>> loader = ArrowLoader(dataset, batch_size=2, shuffle=True)
        >>> [len(batch["x"]) for batch in loader]
        [2, 1]
    """

    def __init__(
        self,
        dataset: ArrowDataset,
        batch_size: int = 256,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        drop_last: bool = False,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(
                    f"ArrowLoader({name}={value!r}): give a whole number of at least {least}."
                )
        self.dataset = dataset
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.is_shuffled = shuffle
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) if seed is None else seed
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.epoch = 0
        self.goes_on = False
        self.begins_at = 0
        self._rank = 0
        self._num_ranks = 1
        self._mode = "evaluate"
        # of an epoch that other ranks began: their number, the rows of a batch, batches of each
        self._spans: list[list[int]] = []
        self._from = 0  # the number of the first batch after them
        self._agreed: str | None = None  # the kind of order that all ranks can read
        self._begun_as: str | None = None  # the kind of order of an epoch that goes on
        self._begun_window = 0
        self._number = 0  # of the next batch

    # ---- one rank's part ----

    def prepared(
        self, stage: str, world: World | None, *, overfit: bool = False, drop: bool = False
    ) -> ArrowLoader:
        """Return a copy for one rank and one stage.

        Args:
            stage: `train`, `val`, `test` or `predict`.
            world: the ranks that share the rows; None: this one reads all.
            overfit: whether to read in order.
            drop: whether rows that cannot be dealt out evenly are left out rather than read twice.
        """
        one = self.dealt(stage, overfit=overfit)
        if world is not None:
            one = self.dealt(stage, world.rank, world.size, overfit=overfit, drop=drop)
            if world.size > 1:
                one._agree(world)
        return one

    def dealt(
        self,
        stage: str,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        overfit: bool = False,
        drop: bool = False,
    ) -> ArrowLoader:
        """Return a copy for one rank of some; as `prepared`, which also lets them agree."""
        one = copy.copy(self)
        one._number = one._from = one.epoch = 0
        one._spans = []
        one._rank = rank
        one._num_ranks = num_ranks
        one._mode = "drop" if drop and stage == "train" else SHARE_MODES[stage]
        if overfit:
            one.is_shuffled = False
        if stage == "predict":
            one.drop_last = False
        return one

    def _agree(self, world: World) -> None:
        """Let the ranks take the same order, whatever each of them has room for.

        Raises:
            DataError: they see different data.
        """
        dataset = self.dataset
        told = world.all_gather_object((dataset.digest, len(dataset), self._order_as()))
        for rank, (digest, num_rows, _) in enumerate(told):
            if (digest, num_rows) != told[0][:2]:
                raise DataError(
                    f"Rank {rank} sees other data at {dataset.source.name} than rank 0:"
                    f" {num_rows:,} rows and the digest {digest[:12]}, not {told[0][1]:,} and"
                    f" {told[0][0][:12]}. Put the same files on all nodes, or on a disk or in a"
                    " bucket that all of them see."
                )
        orders = {order for _, _, order in told}
        # Rows in memory can be read in the order of windows, streamed ones in no other
        self._agreed = "windows" if "windows" in orders else None

    def _share(self) -> Share:
        taken = sum(ranks * size * batches for ranks, size, batches in self._spans)
        total = len(self.dataset)
        return Share(total, self._rank, self._num_ranks, self._mode, min(taken, total))

    def __len__(self) -> int:
        """Return how many batches this rank reads, or has read, in this epoch."""
        rows = len(self._share())
        batches = rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)
        return self._from + batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of another epoch; the loop calls it."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._spans = []
            self._from = 0

    @property
    def remedy(self) -> str:
        """The argument that makes it faster."""
        found = []
        if self._is_streamed:
            found.append(
                "Read the rows into memory, where there is room: ArrowDataset(mode='memory'); or"
                " write row groups that are read faster: raylit data convert --row-group-size."
            )
        if self.dataset.form.runs_user_code or not found:
            more = 2 * self.num_workers or 2
            found.append(f"Let processes read ahead: dataset.loader(num_workers={more}).")
        return " ".join(found)

    # ---- reading ----

    def __iter__(self) -> Iterator[Batch]:
        """Begin an epoch, or the rest of the one that `load_state_dict` told of."""
        if not self.goes_on:
            self._spans = []
            self._from = 0
            self._begun_as = None
            self._begun_window = 0
        self._number = self.begins_at
        self.begin_anew()
        rows = min(len(self._share()), (len(self) - self._from) * self.batch_size)
        start = min(rows, (self._number - self._from) * self.batch_size)
        if self.num_workers:
            return self._read_by_workers(start, rows)
        reader = self._reader()
        layout = self.dataset.layout
        blocks = _blocks(reader.chunks(start, rows), layout, self.batch_size, self.pin_memory)
        return self._counted(_cut(ahead(blocks, AHEAD), layout, self.batch_size))

    def _counted(self, batches: Iterator[object]) -> Iterator[object]:
        for batch in batches:
            self._number += 1
            yield batch

    @property
    def _is_streamed(self) -> bool:
        return self.dataset.mode == "stream"

    @property
    def _chunk_rows(self) -> int:
        """How many rows are gathered at a time, if a batch is no more."""
        return min(CHUNK_ROWS, CHUNK_BYTES // self.dataset.row_bytes)

    def _reader(self, keeps_window: bool = False) -> ChunkReader:
        """Return the reader of this epoch.

        Raises:
            DataError: the epoch was begun with all rows mixed, which cannot be streamed.
        """
        dataset = self.dataset
        share = self._share()
        counts = dataset.num_rows_by_piece
        order_as = self._begun_as or self._order_as()
        key = () if order_as == "plain" else (self.seed, self.epoch)
        window_rows = self._begun_window or dataset.window_rows
        step = max(1, self._chunk_rows // self.batch_size) * self.batch_size
        if self._is_streamed:
            if order_as == "rows":
                raise DataError(
                    f"This epoch of {dataset.source.name} was begun with all rows in memory, in an"
                    " order that cannot be streamed. Go on with mode='memory' or 'mapped', on a"
                    " machine with room for it, or from the end of an epoch."
                )
            plan = windows(counts, window_rows, key)
            return WindowReader(dataset, plan, share, step, keeps_window)
        order = dataset.numbers()
        if key:
            if order_as == "windows":
                places = all_positions(counts, window_rows, key)
            else:
                places = permutation(len(dataset), *key)
            order = places if order is None else order[places]
        return StoreReader(dataset.store(), order, share, step)

    def _order_as(self) -> str:
        if not self.is_shuffled:
            return "plain"
        if self._agreed is not None:
            return self._agreed
        return "windows" if self._is_streamed else "rows"

    def _read_by_workers(self, start: int, stop: int) -> Iterator[object]:
        """Let worker processes make the batches, some of them at a time."""
        dataset = self.dataset
        layout = dataset.layout  # what it needs of the data is read once, here
        if not self._is_streamed:
            dataset.store()  # which the workers share
        per_block = self._batches_per_block()
        step = per_block * self.batch_size
        blocks = [(first, min(stop, first + step)) for first in range(start, stop, step)]
        loader = DataLoader(
            _Blocks(self, layout),
            batch_size=None,
            sampler=blocks,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            pin_memory=self.pin_memory,
            generator=torch.Generator(),  # else a seed is drawn of the process's own numbers
        )
        return self._counted(self._unpacked(begin_reading(loader), layout))

    def _unpacked(
        self, blocks: Iterator[list[object] | tuple[dict[str, Field], int]], layout: Layout
    ) -> Iterator[object]:
        for block in blocks:
            if isinstance(block, list):
                yield from block
            else:
                yield from _cut(iter([Rows(*block)]), layout, self.batch_size)

    def _batches_per_block(self) -> int:
        """Return how many batches a worker makes at a time.

        Of a window as many as are its share.
        """
        if self.dataset.form.runs_user_code:
            return 4 if self._is_streamed else 1
        rows = self._chunk_rows
        if self._is_streamed:
            rows = self.dataset.window_rows // (self._num_ranks * self.num_workers)
        return max(1, min(rows, 4 * CHUNK_ROWS) // self.batch_size)

    # ---- in the middle of an epoch ----

    def state_dict(self, batch: int | None = None) -> StateDict:
        """Return how far the epoch was read, by whom and in which order, as plain data.

        Args:
            batch: how many batches of the epoch were trained on; None: as many as were given.
        """
        order_as = self._begun_as or self._order_as()
        number = self._number if batch is None else batch
        before = sum(ranks * size * batches for ranks, size, batches in self._spans)
        return {
            "number": number,
            # in samples of all ranks, as a PlannedSampler's
            "cursor": before + self._num_ranks * self.batch_size * (number - self._from),
            "seed": self.seed,
            "epoch": self.epoch,
            "digest": self.dataset.digest,
            "num_rows": len(self.dataset),
            "order": order_as,
            "window_rows": self._begun_window or self.dataset.window_rows,
            "read_by": [self._num_ranks, self.batch_size],
            "spans": self._spans,
            "from": self._from,
            "vocabulary": {
                name: plain_vocabulary(known) for name, known in self.dataset.vocabulary.items()
            },
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Let the next iteration begin where `state_dict` was taken.

        Raises:
            DataError: it was taken of other data.
        """
        self._check_data(state)
        vocabulary = {
            name: vocabulary_of(known) for name, known in state.get("vocabulary", {}).items()
        }
        if vocabulary and vocabulary != self.dataset.vocabulary:
            known = self.dataset.encoding
            self.dataset = self.dataset.encoded(Encoding(vocabulary, known.means, known.scales))
        self.seed = state["seed"]
        self.epoch = state["epoch"]
        self._spans = [list(span) for span in state["spans"]]
        self._from = state["from"]
        self._begun_as = state["order"]
        self._begun_window = state["window_rows"]
        self.begins_at = self._number = state["number"]
        self.goes_on = True

    def _check_data(self, state: StateDict) -> None:
        digest = self.dataset.digest
        if (state["digest"], state["num_rows"]) == (digest, len(self.dataset)):
            return
        text = (
            f"The checkpoint was saved while {state['num_rows']:,} rows of data with the digest"
            f" {state['digest'][:12]} were read; {self.dataset.source.name} has"
            f" {len(self.dataset):,} and the digest {digest[:12]}."
        )
        if self.dataset.other_data == "refuse":
            raise DataError(
                f"{text} Give the data that it was, or ArrowDataset(..., other_data='accept') to go"
                " on with other rows at the same batch."
            )
        warn(f"{text} This fit goes on with them, at the same batch.")

    @property
    def is_others(self) -> bool:
        """Whether other ranks, or batches of another size, have begun the epoch that is read."""
        return bool(self._spans)

    def length_for(self, num_ranks: int) -> int:
        """Return how many batches each of `num_ranks` ranks would have."""
        rows = len(Share(len(self.dataset), 0, num_ranks, self._mode, 0))
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def go_on(self, state: StateDict, batch: int, counted: int) -> None:
        """Let the next iteration be the rest of the epoch that `state` describes.

        If other ranks, or batches of another size, have read the beginning, the rest is dealt out
        anew.

        Args:
            state: of this rank, or if they were another number, of any.
            batch: how many batches of the epoch were read, as this number of ranks counts them; 0:
                the next epoch is a new one.
            counted: as those counted who read them.
        """
        self.load_state_dict(state)
        if not batch:
            self._spans = []
            self._from = 0
            self.begin_anew()
            return
        read_by = list(state["read_by"])
        if read_by == [self._num_ranks, self.batch_size] and not self._spans:
            return
        # A loader that has begun again beside a longer one counts for itself
        number = state["number"]
        per_batch = self._num_ranks * self.batch_size
        self.begins_at = batch if number == counted else state["cursor"] // per_batch
        self._spans = [*self._spans, [*read_by, number - self._from]]
        self._from = self.begins_at

    def begin_anew(self) -> None:
        """Let the next iteration begin an epoch, whatever `go_on` told."""
        self.goes_on = False
        self.begins_at = 0

    def rest(self, loader: Loaders) -> Iterator[Batch]:
        """Begin to read the rest of the epoch, from batch `begins_at` on."""
        self.goes_on = True
        return iter(loader)

    def __repr__(self) -> str:
        return f"ArrowLoader({self.dataset!r}, batch_size={self.batch_size})"


# ---- blocks of batches ----


def _blocks(chunks: Iterator[Rows], layout: Layout, batch_size: int, pin: bool) -> Iterator[Rows]:
    """Turn chunks of any size into blocks of whole batches, but for the last."""
    rest: Rows | None = None
    for rows in chunks:
        start = 0
        if rest is not None:
            start = min(batch_size - len(rest), len(rows))
            rest = concat([rest, rows.slice(0, start)])
            if len(rest) < batch_size:
                continue
            yield layout.finish(rest, pin)
        num = (len(rows) - start) // batch_size * batch_size
        if num:
            yield layout.finish(rows.slice(start, num), pin)
        left = len(rows) - start - num
        # A slice alone would keep the whole chunk in memory
        rest = rows.slice(start + num, left).copy() if left else None
        del rows
    if rest is not None:
        yield layout.finish(rest, pin)


def _cut(blocks: Iterator[Rows], layout: Layout, batch_size: int) -> Iterator[object]:
    """Cut batches off blocks."""
    for rows in blocks:
        yield from layout.batches(rows, batch_size)
        del rows


class _Blocks(Dataset[object]):
    """The work of the worker processes: rows from one number to another, or batches of them.

    Each opens the files itself. The random numbers of a batch depend on seed, epoch, rank and its
    number, not on the worker that happens to make it.
    """

    def __init__(self, loader: ArrowLoader, layout: Layout) -> None:
        self._loader = copy.copy(loader)
        self._layout = layout
        self._reader: ChunkReader | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_mode": self._loader.dataset.mode}

    def __setstate__(self, state: StateDict) -> None:
        """Read as the process does that sends the numbers of rows: another mode has another order.

        A spawned process would choose by the memory that is free by now.
        """
        self._loader = state["_loader"]
        self._layout = state["_layout"]
        self._reader = None
        self._loader.dataset.mode = state["_mode"]

    def __getitem__(self, span: tuple[int, int]) -> object:
        loader = self._loader
        layout = self._layout
        if self._reader is None:
            self._reader = loader._reader(keeps_window=True)
        start, stop = span
        rows = layout.finish(concat(list(self._reader.chunks(start, stop))), pin=False)
        if not layout.form.runs_user_code:
            return rows.fields, rows.num
        batches = []
        for first in range(0, len(rows), loader.batch_size):
            number = loader._from + (start + first) // loader.batch_size
            rng.seed(mixed(loader.seed, loader.epoch, loader._rank, number))
            batches.append(layout.batch(rows, first, min(first + loader.batch_size, len(rows))))
        return batches


def _as_it_is(item: object) -> object:
    return item
