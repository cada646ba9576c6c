"""ParquetDataModule: one table, split, with the statistics of its training part."""

from __future__ import annotations

import copy
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

from raylit.core.datamodule import LightningDataModule
from raylit.data.arrow.columns import BatchForm, Columns
from raylit.data.arrow.dataset import BUFFER_BYTES, ArrowDataset, encoding_of, needs_statistics
from raylit.data.arrow.loader import ArrowLoader
from raylit.data.arrow.source import FileSource
from raylit.data.arrow.split import Split, labels_of, split_of
from raylit.data.arrow.statistics import (
    ColumnStatistics,
    from_plain,
    keep,
    place_of,
    read_kept,
    to_plain,
)
from raylit.errors import ConfigError, DataError
from raylit.runtime.aliases import Arguments, Batch, StateDict
from raylit.runtime.messages import warn

EVALUATED = ("val", "test", "predict")


class ParquetDataModule(LightningDataModule):
    """Trains on a table of Parquet, Arrow IPC, CSV or JSON lines, split into parts.

    Vocabularies, means and standard deviations are those of the training part alone. They are
    computed once, kept in a folder `.raylit` beside the data, and saved in checkpoints.

    Args:
        source: the data, as for `ArrowDataset`; what is split, or trained on.
        val: other data for validation, in place of a part.
        test: likewise for testing.
        predict: likewise for prediction; by default the test part.
        split: name and fraction, or number of rows, of the parts: `{"val": 0.1, "test": 0.1}`.
        by: a column whose equal values stay in one part.
        time: a column by which the newest rows are the last part.
        stratify: a column whose values have equal shares in all parts.
        split_seed: of chance, apart from the seed of training.
        batch_size: rows in a training batch.
        eval_batch_size: rows in a batch of evaluation; by default 4 training batches.
        shuffle: whether training reads the rows in another order in each epoch.
        num_workers: processes that read; 0: a thread does.
        pin_memory: as for `ArrowLoader`.
        batch: `dict`, `tuple` or a dataclass; as all further arguments, it is `ArrowDataset`'s.

    Raises:
        ConfigError: arguments contradict each other.
        DataError: in `prepare_data` or `setup`, what `ArrowDataset` raises.

    Example:
        >>> import pyarrow as pa
        >>> houses = pa.table({"size": [50.0, 80.0, 120.0, 95.0], "price": [3, 4, 7, 5]})
        >>> data = ParquetDataModule(houses, target="price", split={"val": 1}, normalize=True)
        >>> data.setup("fit")
        >>> len(data.part("train")), sorted(next(iter(data.val_dataloader())))
        (3, ['price', 'size'])
    """

    def __init__(
        self,
        source: object,
        *,
        val: object = None,
        test: object = None,
        predict: object = None,
        split: dict[str, float] | None = None,
        by: str | None = None,
        time: str | None = None,
        stratify: str | None = None,
        split_seed: int = 0,
        batch_size: int = 256,
        eval_batch_size: int | None = None,
        shuffle: bool = True,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        columns: list[str] | None = None,
        features: list[str] | None = None,
        target: str | list[str] | None = None,
        batch: BatchForm = "dict",
        filters: object = None,
        categories: Sequence[str] = (),
        nulls: object = "error",
        normalize: bool | list[str] = False,
        lists: str = "padded",
        mode: str = "auto",
        buffer_bytes: int = BUFFER_BYTES,
        buffer_rows: int | None = None,
        transform: Callable[[Columns], Columns] | None = None,
        collate_fn: Callable[[Columns], Batch] | None = None,
        format: str | None = None,
        types: dict[str, str] | None = None,
        storage_options: dict[str, object] | None = None,
        other_data: str = "refuse",
    ) -> None:
        super().__init__()
        source = os.fspath(source) if isinstance(source, os.PathLike) else source
        self.save_hyperparameters(ignore=_not_plain(locals()))
        self.split: Split = split_of(split, by, time, stratify, split_seed)
        self._sources = {"train": source, "val": val, "test": test, "predict": predict}
        for name in EVALUATED:
            if self._sources[name] is not None and name in self.split.names:
                raise ConfigError(
                    f"{name}= and split= with {name!r} contradict each other: give one of them."
                )
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self._shuffle = shuffle
        self._loader_options = {"num_workers": num_workers, "pin_memory": pin_memory}
        self._options: Arguments = {
            "columns": columns,
            "features": features,
            "target": target,
            "batch": batch,
            "filters": filters,
            "categories": categories,
            "nulls": nulls,
            "normalize": normalize,
            "lists": lists,
            "mode": mode,
            "buffer_bytes": buffer_bytes,
            "buffer_rows": buffer_rows,
            "transform": transform,
            "collate_fn": collate_fn,
            "format": format,
            "types": types,
            "storage_options": storage_options,
            "other_data": other_data,
        }
        self._parts: dict[str, ArrowDataset] = {}
        self._statistics: dict[str, ColumnStatistics] | None = None
        self._restored: StateDict | None = None
        for name in EVALUATED:
            if self._has(name):  # a hook that is there is called
                setattr(self, f"{name}_dataloader", functools.partial(self._eval_loader, name))

    def _has(self, name: str) -> bool:
        is_there = self._sources[name] is not None or name in self.split.names
        return is_there or (name == "predict" and self._has("test"))

    # ---- what there is ----

    def prepare_data(self) -> None:
        """Compute the statistics that are not kept yet; the ranks of this node then read them."""
        opened = self._open()
        if needs_statistics(opened["train"].form) and self._restored is None:
            self._known_statistics(opened["train"])

    def setup(self, stage: str) -> None:
        """Look at the data, split it, and fix vocabularies and statistics."""
        if self._parts:
            return
        self._parts = self._open()
        self.hparams["data_digest"] = self.digest  # so that loggers record it
        self._hparams_initial = copy.deepcopy(self.hparams)
        if self._restored is not None:
            self._use_restored(self._restored)
        elif needs_statistics(self._parts["train"].form):
            self._encode(self._known_statistics(self._parts["train"]))

    def _open(self) -> dict[str, ArrowDataset]:
        whole = ArrowDataset(self._sources["train"], **self._options)
        parts = {"train": whole}
        if self.split.parts:
            labels = labels_of(whole, self.split)
            for label, name in enumerate(self.split.names):
                parts[name] = whole.part(labels, label)
        for name in EVALUATED:
            if self._sources[name] is not None:
                parts[name] = ArrowDataset(self._sources[name], **self._options)
                if parts[name].form.columns != whole.form.columns:
                    raise DataError(
                        f"The columns of {name}={self._sources[name]!r} are of other types than"
                        " those of the training data. Write both with one schema."
                    )
        return parts

    def part(self, name: str) -> ArrowDataset:
        """Return the data set of a part: `train`, `val`, `test` or `predict`; after `setup`.

        Raises:
            DataError: there is no such part.
        """
        if not self._parts:
            self.setup("fit")
        name = "test" if name == "predict" and name not in self._parts else name
        if name not in self._parts:
            raise DataError(
                f"There is no part {name!r}. Give split={{{name!r}: 0.1}} or {name}=PATH; there"
                f" are: {', '.join(self._parts)}."
            )
        return self._parts[name]

    @property
    def digest(self) -> str:
        """A digest of the training data and all others, which identifies them."""
        found = [one.digest for name, one in self._parts.items() if self._sources[name] is not None]
        return (
            found[0]
            if len(found) == 1
            else hashlib.blake2b("".join(found).encode(), digest_size=16).hexdigest()
        )

    def statistics(self) -> dict[str, ColumnStatistics]:
        """Return the statistics of each column of the training part.

        See `ArrowDataset.statistics`.
        """
        if self._statistics is None:
            self._statistics = self._known_statistics(self.part("train"))
        return self._statistics

    def num_categories(self, column: str) -> int:
        """Return how many codes a category has; see `ArrowDataset.num_categories`."""
        return self.part("train").num_categories(column)

    def _known_statistics(self, train: ArrowDataset) -> dict[str, ColumnStatistics]:
        """Return the statistics that are kept beside the data, once they were computed."""
        if not isinstance(train.source, FileSource):
            return train.statistics()
        names = [column.name for column in train.form.columns if column.kind != "mask"]
        kinds = [(column.name, column.kind) for column in train.form.columns]
        # when files were written counts here, but not for the digest, which goes with the rows
        stamps = [file.stamp for file in train.source.files]
        told = f"{train.digest} {stamps} {self.split} {kinds}"
        key = hashlib.blake2b(told.encode(), digest_size=12)
        path = place_of(train.source.url, key.hexdigest())
        found = read_kept(path, names)
        if found is None:
            found = train.statistics()
            keep(path, found)
        return found

    def _encode(self, statistics: dict[str, ColumnStatistics]) -> None:
        self._statistics = statistics
        encoding = encoding_of(self._parts["train"].form, statistics)
        shared = self._parts["train"].encoded(encoding)
        for name, one in self._parts.items():
            is_same = one.source is shared.source
            self._parts[name] = one.encoded(encoding, shared if is_same else None)

    # ---- loaders ----

    def train_dataloader(self) -> ArrowLoader:
        """Return a loader of the training part."""
        return self.part("train").loader(
            self.batch_size, shuffle=self._shuffle, **self._loader_options
        )

    def _eval_loader(self, name: str) -> ArrowLoader:
        batch_size = self.eval_batch_size or 4 * self.batch_size
        return self.part(name).loader(batch_size, **self._loader_options)

    # ---- checkpoints ----

    def state_dict(self) -> StateDict:
        """Return the digest of the data, and the statistics that it is encoded with."""
        if not self._parts:
            return dict(self._restored or {})
        known = to_plain(self._statistics) if self._statistics is not None else None
        return {"digest": self.digest, "statistics": known}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Encode the data as it was encoded when the checkpoint was saved.

        Raises:
            DataError: a fit is to go on with other data.
        """
        self._restored = state_dict
        if self._parts:
            self._use_restored(state_dict)

    def _use_restored(self, state: StateDict) -> None:
        if state["digest"] != self.digest:
            self._refuse_other_data(state["digest"])
        if state["statistics"] is not None:
            self._encode(from_plain(state["statistics"]))

    def _refuse_other_data(self, digest: str) -> None:
        text = (
            f"The checkpoint was saved with data of the digest {digest[:12]}, and"
            f" {self._parts['train'].source.name} has {self.digest[:12]}."
        )
        is_fit = self.trainer is not None and self.trainer.state.fn == "fit"
        if is_fit and self._options["other_data"] == "refuse":
            raise DataError(
                f"{text} Give the data that it was, or ParquetDataModule(...,"
                " other_data='accept') to go on with other rows."
            )
        if is_fit:
            warn(f"{text} This fit goes on with it.")

    def __getstate__(self) -> dict[str, object]:
        """Leave out the rows: another process reads them itself."""
        state = super().__getstate__()
        for name in EVALUATED:
            state.pop(f"{name}_dataloader", None)
        return state

    def __setstate__(self, state: StateDict) -> None:
        self.__dict__.update(state)
        for name in EVALUATED:
            if self._has(name):
                setattr(self, f"{name}_dataloader", functools.partial(self._eval_loader, name))


def _not_plain(arguments: Mapping[str, object]) -> list[str]:
    """Return the arguments that no config file could hold, such as tables and functions."""
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    # `self` and `__class__` are no arguments, which ignoring them does not mind
    return [name for name, value in arguments.items() if not isinstance(value, plain)]
