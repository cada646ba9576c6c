"""The best of a sweep, fitted again: on training and validation data together, or for longer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from raylit.callbacks import Callback, EarlyStopping, ModelCheckpoint
from raylit.errors import ConfigError
from raylit.runtime.aliases import Batch, Loaders
from raylit.runtime.messages import info
from raylit.trainer.trainer import Trainer

if TYPE_CHECKING:
    from raylit.core.datamodule import LightningDataModule
    from raylit.core.module import LightningModule
    from raylit.core.trainer import JobTrainer

ON = ("all", "train")  # what the best is fitted on again
INSTEAD = "Fit on the training data alone, with validation as before: --retrain train."
KEPT = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn")
KEPT_OF_WORKERS = ("multiprocessing_context", "prefetch_factor", "persistent_workers")


class Joined:
    """The training loader of a datamodule, with the validation data among the training data.

    It takes the place of `train_dataloader` in the datamodule, all else of which stays as it is:
    its hooks around a batch, its state and its hyperparameters.

    Args:
        data: the datamodule; its loaders are read as DataLoaders of maps.
    """

    def __init__(self, data: LightningDataModule) -> None:
        self.data = data
        self._own = data.train_dataloader

    def __call__(self) -> DataLoader[Batch]:
        """Return a loader like that for training, of both data sets.

        Raises:
            ConfigError: they cannot be joined.
        """
        data: Any = self.data
        data.train_dataloader = self._own  # which that for validation may call
        try:
            return joined(data.train_dataloader(), data.val_dataloader())
        finally:
            data.train_dataloader = self


class RestingPlateaus(Callback):
    """Lets a scheduler rest that watches what is logged in validation alone.

    Else it would end the fit.
    """

    def on_fit_start(self, trainer: JobTrainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            if config.reduce_on_plateau:
                config.strict = False
                info(
                    f"--retrain: without validation {type(config.scheduler).__name__} leaves the"
                    f" learning rate as it is, unless training logs {config.monitor!r}. {INSTEAD}"
                )


def joined(train: Loaders, val: Loaders) -> DataLoader[Batch]:
    """Return a loader like `train` over the data of both.

    Raises:
        ConfigError: they are no DataLoaders, or of data without a length.
    """
    for loader in (train, val):
        if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
            raise ConfigError(
                "--retrain: training and validation data can be joined where both loaders are"
                f" DataLoaders of data with a length, but there is {type(loader).__name__}."
                f" {INSTEAD}"
            )
    if train.batch_size is None or type(train.sampler) not in (RandomSampler, SequentialSampler):
        raise ConfigError(
            "--retrain: the training loader has a sampler or batches of its own, which would not"
            f" know the validation data. {INSTEAD}"
        )
    arguments = {name: getattr(train, name) for name in KEPT}
    if train.num_workers:
        arguments |= {name: getattr(train, name) for name in KEPT_OF_WORKERS}
    return DataLoader(
        ConcatDataset([train.dataset, val.dataset]),
        train.batch_size,
        shuffle=isinstance(train.sampler, RandomSampler),
        drop_last=train.drop_last,
        generator=train.generator,
        **arguments,
    )


def without_validation(trainer: Trainer) -> Trainer:
    """Return a Trainer whose callbacks need no validation: none stops early, the last is saved.

    Nor do its schedulers.
    """
    dropped = [
        one
        for one in trainer.callbacks
        if isinstance(one, EarlyStopping) or (isinstance(one, ModelCheckpoint) and one.monitor)
    ]
    if dropped:
        names = ", ".join(sorted({type(one).__name__ for one in dropped}))
        info(f"--retrain: without validation {names} has nothing to go by; the last is saved.")
    kept = [one for one in trainer.callbacks if one not in dropped] + [RestingPlateaus()]
    if any(isinstance(one, ModelCheckpoint) for one in dropped):
        kept.append(ModelCheckpoint())
    changed = trainer.replaced(limit_val_batches=0, num_sanity_val_steps=0)
    changed.callbacks = kept
    return changed
