"""LightningDataModule: where the data comes from, apart from the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from typing import IO, TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from raylit import checkpoint as checkpoints
from raylit.core.hooks import describe, is_overridden
from raylit.core.hparams import HasHyperparameters, accepted_arguments, class_only, construct
from raylit.runtime.aliases import Batch, Loaders, StateDict
from raylit.runtime.batch import transfer_to

if TYPE_CHECKING:
    from os import PathLike

    from raylit.core.trainer import RunningTrainer

Datasets: TypeAlias = Any  # what has items and a length or is iterable, or a list or dict of them


class LightningDataModule(HasHyperparameters):
    """Prepares data and returns loaders. Also known as `DataModule`.

    `prepare_data` runs on one process per node: download and convert there, keep nothing on `self`.
    `setup(stage)` runs on every rank, with `fit`, `validate`, `test` or `predict`: make the data
    sets there. The `*_dataloader` hooks return a DataLoader, any iterable, or a list or dict of
    them.

    Example:
        >>> class Numbers(LightningDataModule):
        ...     def setup(self, stage):
        ...         self.data = torch.arange(8.0)
        ...
        ...     def train_dataloader(self):
        ...         return DataLoader(self.data, batch_size=4)
    """

    name: str | None = None
    CHECKPOINT_HYPER_PARAMS_KEY = "datamodule_hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME = "datamodule_hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE = "datamodule_hparams_type"

    allow_zero_length_dataloader_with_multiple_devices: bool = False
    prepare_data_per_node: bool = True
    trainer: RunningTrainer | None = None

    def __init__(self) -> None: ...
    def prepare_data(self) -> None: ...
    def setup(self, stage: str) -> None: ...
    def teardown(self, stage: str) -> None: ...
    def on_exception(self, exception: BaseException) -> None: ...
    def train_dataloader(self) -> Loaders: ...
    def val_dataloader(self) -> Loaders: ...
    def test_dataloader(self) -> Loaders: ...
    def predict_dataloader(self) -> Loaders: ...
    def load_state_dict(self, state_dict: StateDict) -> None: ...

    def state_dict(self) -> StateDict:
        """Return the state of the data that a checkpoint is to hold."""
        return {}

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Change a batch while it is still on the CPU; wins over the module's."""
        return batch

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch to `device`; wins over the module's."""
        return transfer_to(batch, device)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Change a batch once it is on the device; wins over the module's."""
        return batch

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Datasets = None,
        val_dataset: Datasets = None,
        test_dataset: Datasets = None,
        predict_dataset: Datasets = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: object,
    ) -> LightningDataModule:
        """Make a datamodule from data sets; each may be a list or dict of several.

        Training data is shuffled unless it is iterable.
        """

        def loader(dataset: Dataset[Batch], shuffle: bool = False) -> DataLoader[Batch]:
            shuffle = shuffle and not isinstance(dataset, IterableDataset)
            return DataLoader(
                dataset,
                batch_size=batch_size,
                shuffle=shuffle,
                num_workers=num_workers,
                pin_memory=torch.cuda.is_available(),
            )

        def loaders(datasets: Datasets, shuffle: bool = False) -> Loaders:
            if isinstance(datasets, Mapping):
                return {key: loader(dataset, shuffle) for key, dataset in datasets.items()}
            if isinstance(datasets, (list, tuple)):
                return [loader(dataset, shuffle) for dataset in datasets]
            return loader(datasets, shuffle)

        datamodule = cls(
            **accepted_arguments(
                cls, {"batch_size": batch_size, "num_workers": num_workers, **datamodule_kwargs}
            )
        )
        for stage, datasets in (
            ("train", train_dataset),
            ("val", val_dataset),
            ("test", test_dataset),
            ("predict", predict_dataset),
        ):
            if datasets is not None:
                setattr(
                    datamodule,
                    f"{stage}_dataloader",
                    _Constant(loaders(datasets, shuffle=stage == "train")),
                )
        return datamodule

    @class_only
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | PathLike[str] | IO[bytes],
        map_location: Any = None,
        hparams_file: str | None = None,
        weights_only: bool | None = None,
        **kwargs: object,
    ) -> Self:
        """Make a datamodule with the stored hyperparameters and state.

        `kwargs` win over the stored ones.

        Raises:
            CheckpointError: the file is missing (which is a FileNotFoundError too), torn or unsafe.
            TypeError: it was called on an object: it makes a new one, and would leave that as it
                is.
        """
        checkpoint = checkpoints.load(
            checkpoint_path, map_location=map_location or "cpu", weights_only=weights_only
        )
        datamodule = construct(cls, checkpoint, hparams_file, kwargs)
        if cls.__qualname__ in checkpoint:
            datamodule.load_state_dict(checkpoint[cls.__qualname__])
        return datamodule

    def __getstate__(self) -> StateDict:
        return {**self.__dict__, "trainer": None}

    def __str__(self) -> str:
        """Name the sizes of the data sets that the loaders would read."""
        lines = []
        for stage, name in (
            ("train", "Train"),
            ("val", "Validation"),
            ("test", "Test"),
            ("predict", "Predict"),
        ):
            hook = f"{stage}_dataloader"
            try:
                found = (
                    _sizes(getattr(self, hook)())
                    if is_overridden(hook, self, LightningDataModule)
                    else "None"
                )
            except Exception:  # before setup a user's hook fails in any way; a text must not
                found = "None"
            lines.append(f"{{{name} dataloader: {found}}}")
        return "\n".join(lines)


describe(LightningDataModule)


class TorchBatches(Protocol):
    """A `ray.data.Dataset`, or an object that gives batches of tensors as one does."""

    def iter_torch_batches(self, *args: Any, **kwargs: Any) -> Iterable[Batch]: ...


# What the entry points take as data
GivenData: TypeAlias = Iterable[Batch] | Dataset[Batch] | TorchBatches | LightningDataModule | None


def _sizes(loaders: Loaders) -> str:
    """Tell how many samples there are: of one loader, or of each of several."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if not isinstance(loaders, (list, tuple)):
        return _size(loaders)
    return " ; ".join(f"{number}. {_size(one)}" for number, one in enumerate(loaders, 1))


def _size(loader: Loaders) -> str:
    dataset = getattr(loader, "dataset", None)
    return f"size={len(dataset) if isinstance(dataset, Sized) else 'NA'}"


class _Constant:
    """A loader hook that returns the same loaders each time.

    A class rather than a lambda so that it pickles.
    """

    def __init__(self, value: Loaders) -> None:
        self.value = value

    def __call__(self) -> Loaders:
        return self.value


DataModule = LightningDataModule
