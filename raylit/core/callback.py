"""The contract of a callback.

A callback is code that runs at the events of a run without being part of the model. It is pickled
with the Trainer: on Ray each rank has its own copy, and after a fit the driver's object, known
by its `state_key`, takes over the attributes of rank 0's, as `__getstate__` gives them;
checkpoints store `state_dict`. Every
method does nothing unless overridden, and only overridden ones are called: a callback costs the
loop only the methods that it overrides.

Events run on the training thread of every rank. A method that waits for something (a disk, a
network, the device) makes training wait. Act on rank 0 only where files are written
(`trainer.is_global_zero`); decisions that change the course of the run must be the same on all
ranks. An exception raised in a callback ends the run.

`raylit.hooks` says when each event fires. To test one, run `raylit.testing.CallbackConformance`
against it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from raylit.core.hooks import describe, is_overridden
from raylit.core.logger import as_loggers
from raylit.errors import ConfigError, foreign_hint, what_it_is
from raylit.runtime.aliases import Batch, CheckpointDict, StateDict, StepOutput

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer

# What a hook is handed is a `raylit.core.trainer.RunningTrainer`. Its parameter is left open here:
# were it typed, a callback that says `trainer: pl.Trainer`, as most do, would break the rule that
# an override takes whatever the overridden method takes, and mypy would refuse it.
Trainer: TypeAlias = Any

# values of `Callback.call_order`
FIRST = -1
USUAL = 0
LAST = 1


@dataclass(frozen=True, slots=True)
class SavedCheckpoints:
    """The checkpoints that a fit leaves, for its Result.

    Attributes:
        best_path: the one with the best monitored value, or None.
        best_score: that value, or None.
        last_path: the newest, or None.
    """

    best_path: str | None = None
    best_score: float | None = None
    last_path: str | None = None


class Callback:
    """Base of all callbacks: override the hooks you need.

    Attributes:
        call_order: where among the others it is called: `FIRST` if it changes settings that all
            others go by, `LAST` if it saves what the others have done.
        watches_metrics: whether it judges metrics, so that at the end of an epoch it is called
            after the module, which may still log some.
        averages_weights: whether validation runs with other weights than those that are trained.
        looks_at_validation: whether it is of no use without the hooks of validations, which it does
            not get from those that training does not wait for.
        saves_on_exception: whether it saves the run when an exception ends it.
        notes_samples: whether it wants to know which samples the batches of a prediction are.
        keeps_predictions: whether it wants all predictions at the end.
        keeps_config: whether it records the config that the fit was made of.

    Example:
        >>> class Announce(Callback):
        ...     def on_train_epoch_end(self, trainer, pl_module):
        ...         trainer.print(f"epoch {trainer.current_epoch} is done")
    """

    call_order: ClassVar[int] = USUAL
    watches_metrics: ClassVar[bool] = False
    averages_weights: ClassVar[bool] = False
    looks_at_validation: ClassVar[bool] = False
    keeps_config: ClassVar[bool] = False

    _log: Callable[..., None] | None = None

    def attach_log(self, log: Callable[..., None] | None) -> None:
        """Let `self.log` be `log`, while a job runs; None: it has ended."""
        if log is None:
            self.__dict__.pop("_log", None)
        else:
            self._log = log

    def config_arguments(self) -> dict[str, object]:
        """Return arguments it was made with that no attribute of the same name tells.

        For the config of the fit, which loggers keep.
        """
        return {}

    def resolve_dirpath(self, trainer: RunningTrainer) -> str | None:
        """Return the folder of its checkpoints that a fit may go on from, None if it saves none."""
        return None

    def listens_to(self, event: str) -> bool:
        """Tell whether the loop is to call the method of this name: if it is overridden.

        Asked once, when a run is prepared, after `setup`.
        """
        return is_overridden(event, self, Callback)

    @property
    def saves_on_exception(self) -> bool:
        return False

    @property
    def notes_samples(self) -> bool:
        return False

    @property
    def keeps_predictions(self) -> bool:
        return False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None: ...
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None: ...
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None: ...
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None: ...
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None: ...
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None: ...
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None: ...
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None: ...
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_predict_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None: ...
    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None: ...
    def on_before_zero_grad(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None: ...
    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None: ...
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None: ...
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None: ...
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None: ...
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: CheckpointDict
    ) -> None: ...
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: CheckpointDict
    ) -> None: ...

    def state_dict(self) -> StateDict:
        """Return the state that checkpoints are to store: tensors and plain data."""
        return {}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Take back the state from `state_dict`."""

    @property
    def state_key(self) -> str:
        """Name of this callback's state within a checkpoint.

        Two callbacks with state may not share one.
        """
        return type(self).__qualname__

    def _generate_state_key(self, **kwargs: object) -> str:
        """Make a `state_key` of the arguments that tell callbacks of one class apart."""
        return f"{type(self).__qualname__}{kwargs!r}"

    def log(self, name: str, value: object, *args: Any, **kwargs: Any) -> None:
        """Record a value, as `LightningModule.log`; only while a Trainer runs."""
        if self._log is None:
            raise RuntimeError(
                f"{type(self).__name__}.log({name!r}, ...) was called outside a running Trainer."
            )
        self._log(name, value, *args, **kwargs)

    def log_dict(self, dictionary: Any, *args: Any, **kwargs: Any) -> None:
        """Record several values; see `log`."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)

    def __getstate__(self) -> StateDict:
        return {key: value for key, value in self.__dict__.items() if key != "_log"}


class Checkpoint(Callback):
    """Base of callbacks that save checkpoints.

    It is called after all others, so that it saves their changes too.
    """

    call_order = LAST
    watches_metrics = True

    def wants_training_state(self, trainer: RunningTrainer) -> bool:
        """Tell whether a validation that ends now may lead to a checkpoint of more than weights."""
        return True

    def saved_checkpoints(self) -> SavedCheckpoints | None:
        """Return the checkpoints for the Result of a fit, None where it does not track them."""
        return None


def checkpoint_folder(trainer: RunningTrainer) -> str:
    """Return the folder of the first ModelCheckpoint, or if there is none the one it would have."""
    saver = trainer.checkpoint_callback
    own = saver.resolve_dirpath(trainer) if saver is not None else None
    return default_folder(trainer) if own is None else own


describe(Callback)


def default_folder(trainer: RunningTrainer) -> str:
    """Return the folder for checkpoints of a callback that was given none.

    Below that of the Trainer's first logger, or below the Trainer's; at its storage URL, if there
    is one.
    """
    if not trainer.loggers:
        return os.path.join(trainer.storage_url or trainer.default_root_dir, "checkpoints")
    logger = as_loggers(trainer.loggers)[0]
    root = trainer.storage_url or logger.save_dir or trainer.default_root_dir
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return os.path.join(root, str(logger.name), version, "checkpoints")


def checkpoint_roots(trainer: RunningTrainer, fn: str) -> list[str]:
    """Return the folders below which earlier runs of such a Trainer saved, the likeliest first.

    It follows `default_folder`, for when no run is open yet. A checkpoint to evaluate may also be
    of a Trainer without this logger; a fit goes on from its own place alone.
    """
    default = trainer.default_root_dir
    if trainer.storage_url:
        return [trainer.storage_url]
    own = next((logger.given_dir for logger in as_loggers(trainer.loggers)), None)
    if not own or os.path.abspath(own) == os.path.abspath(default):
        return [default]
    return [own] if fn == "fit" else [own, default]


def check_callbacks(callbacks: Iterable[object], origin: str = "callbacks holds") -> None:
    """Find out whether all are callbacks; `origin` says whose they are.

    Raises:
        ConfigError: one is something else.
    """
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"{origin} what is no Callback: {what_it_is(callback)}.{foreign_hint(callback)}"
            )


def in_order(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks in the order of their calls: by `call_order`, then as given."""
    return sorted(callbacks, key=lambda callback: callback.call_order)
