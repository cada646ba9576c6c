"""The `trainer` that user code reads: on every rank while a job runs, on the driver afterwards.

User code may set some of it: attributes that are a `Limit`, and `callbacks`, `loggers`,
`optimizers` and `should_stop`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from raylit.callbacks import Bar, EarlyStopping, ModelCheckpoint, RecoveryCheckpoint
from raylit.checkpoint.io import CheckpointIO
from raylit.core.callback import Callback, Checkpoint
from raylit.core.limits import Limits
from raylit.core.logger import Logger, as_loggers
from raylit.core.progress import Progress
from raylit.core.states import RunningStage, TrainerState
from raylit.data import seen_indices
from raylit.engine import optimizers as engine_optimizers
from raylit.engine.optimizers import CountedOptimizer
from raylit.engine.schedule import validation_due
from raylit.metrics.metrics import to_numbers
from raylit.parallel import Precision, Strategy, World, choose_device
from raylit.profilers import Profiler
from raylit.runtime.aliases import Arguments, Loaders, Prediction, UserOptimizer
from raylit.trainer.settings import Settings
from raylit.validation.config import ValidationConfig

if TYPE_CHECKING:
    from raylit.core.datamodule import LightningDataModule
    from raylit.core.job import Display
    from raylit.core.module import LightningModule
    from raylit.core.optimizer import LightningOptimizer, LRSchedulerConfig
    from raylit.engine.run import Run

T = TypeVar("T")
STAGE_OF_LOADER = {"sanity_check": "val", "validate": "val", "test": "test", "predict": "predict"}


class Setting(Generic[T]):
    """An attribute of the Trainer that is one of its `settings`."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: TrainerView, owner: type) -> T: ...

    def __get__(self, instance: TrainerView | None, owner: type) -> Self | T:
        if instance is None:
            return self
        value: T = getattr(instance.settings, self._name)
        return value

    def __set__(self, instance: TrainerView, value: object) -> NoReturn:
        name = self._name
        raise AttributeError(
            f"trainer.{name} is set once, when the Trainer is made. Make another one with"
            f" trainer.replaced({name}={value!r})."
        )


class Limit(Generic[T]):
    """An attribute of the Trainer that is one of its `limits`, and so may be set while it runs."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: TrainerView, owner: type) -> T: ...

    def __get__(self, instance: TrainerView | None, owner: type) -> Self | T:
        if instance is None:
            return self
        value: T = getattr(instance.limits, self._name)
        return value

    def __set__(self, instance: TrainerView, value: T) -> None:
        setattr(instance.limits, self._name, value)


class TrainerView:
    """The Trainer as user code reads it: settings, the place in the run, metrics.

    Attributes:
        settings: the arguments, settled; they never change.
        limits: how long, how often and how much, as is in effect now.
        callbacks: those that are called, in this order.
        loggers: where metrics go.
        strategy: how the ranks keep the model in step.
        profiler: what measures where the time goes.
        progress: the counters.
        should_stop: whether training is to end; any rank may set it.
        num_training_batches: batches of an epoch of training on this rank.
        ckpt_path: the checkpoint that the last job began from, or None.
        display: where the progress bar of rank 0 sends what it would draw, or None to draw here.
    """

    settings: Settings
    limits: Limits
    callbacks: list[Callback]
    loggers: list[Logger]
    strategy: Strategy
    profiler: Profiler
    progress: Progress
    should_stop: bool
    num_training_batches: float
    ckpt_path: str | None
    display: Display | None
    _run: Run | None
    _state: TrainerState
    _metrics: tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]
    _module: LightningModule | None
    _datamodule: LightningDataModule | None

    # ---- settings ----
    min_workers = Setting[int]()
    num_workers = Setting[int]()
    gpus = Setting[tuple[int, ...] | None]()
    launcher = Setting[str]()
    start_method = Setting[str]()
    num_nodes = Setting[int]()
    use_gpu = Setting[bool | None]()
    accelerator = Setting[str]()
    resources_per_worker = Setting[dict[str, float] | None]()
    max_failures = Setting[object]()
    storage_path = Setting[str | None]()
    default_root_dir = Setting[str]()
    precision = Setting[str]()
    compile = Setting[Arguments | None]()
    async_validation = Setting[ValidationConfig | None]()
    fast_dev_run = Setting[int | bool]()
    overfit_batches = Setting[int | float]()
    inference_mode = Setting[bool]()
    deterministic = Setting[bool | str | None]()
    benchmark = Setting[bool | None]()
    detect_anomaly = Setting[bool]()
    barebones = Setting[bool]()
    sync_batchnorm = Setting[bool]()
    use_distributed_sampler = Setting[bool]()
    enable_autolog_hparams = Setting[bool]()
    strict_checkpoints = Setting[bool]()
    checkpoint_io = Setting[CheckpointIO | None]()

    # ---- what is in effect ----
    max_epochs = Limit[int | None]()
    min_epochs = Limit[int | None]()
    max_steps = Limit[int]()
    min_steps = Limit[int | None]()
    limit_train_batches = Limit[int | float]()
    limit_val_batches = Limit[int | float]()
    limit_test_batches = Limit[int | float]()
    limit_predict_batches = Limit[int | float]()
    num_sanity_val_steps = Limit[float]()
    val_check_interval = Limit[int | float]()
    val_check_time_s = Limit[float | None]()
    check_val_every_n_epoch = Limit[int | None]()
    reload_dataloaders_every_n_epochs = Limit[int]()
    log_every_n_steps = Limit[int]()
    accumulate_grad_batches = Limit[int]()
    gradient_clip_val = Limit[float | None]()
    gradient_clip_algorithm = Limit[str | None]()

    # ---- where it is ----
    @property
    def run(self) -> Run | None:
        """The run that goes on, or the last one; see `raylit.core.trainer.RunHandle`."""
        return self._run

    @property
    def current_epoch(self) -> int:
        """Epochs completed; the number of the one that runs."""
        return self.progress.epoch

    @property
    def global_step(self) -> int:
        """Optimizer steps taken."""
        return self.progress.steps

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch being trained on is the epoch's last."""
        return self.progress.is_last_batch

    @property
    def has_validated(self) -> bool:
        """Whether validation has run to its end in this fit."""
        return self._run is not None and self._run.outcome.has_validated

    @property
    def should_log_step(self) -> bool:
        """Whether the step values of this batch are due at the loggers."""
        return bool(self.log_every_n_steps) and (
            (self.progress.log_steps + 1) % self.log_every_n_steps == 0 or self.should_stop
        )

    def should_log_batch(self, batch_idx: int, dataloader_idx: int = 0) -> bool:
        """Tell whether the values of this evaluation batch are due at the loggers."""
        every = self.log_every_n_steps
        number = (
            sum(self._num_batches(STAGE_OF_LOADER.get(str(self._stage), ""))[:dataloader_idx])
            + batch_idx
            + 1
        )
        return bool(every) and (number % every == 0 or self.should_stop)

    @property
    def sanity_checking(self) -> bool:
        """Whether validation runs ahead of training."""
        return self._stage == "sanity_check"

    @property
    def training(self) -> bool:
        """Whether training runs."""
        return self._stage == "train"

    @property
    def validating(self) -> bool:
        """Whether validation runs."""
        return self._stage == "validate"

    @property
    def testing(self) -> bool:
        """Whether test runs."""
        return self._stage == "test"

    @property
    def predicting(self) -> bool:
        """Whether prediction runs."""
        return self._stage == "predict"

    @property
    def interrupted(self) -> bool:
        """Whether an exception ended the last job."""
        return self.state.status == "interrupted"

    @property
    def received_sigterm(self) -> bool:
        """Whether this process was asked to end."""
        return self._run is not None and self._run.agreement.received_sigterm

    @property
    def evaluating(self) -> bool:
        """Whether validation or test runs, the sanity check among them."""
        return self._stage in ("validate", "test", "sanity_check")

    @property
    def _stage(self) -> str | None:
        run = self._run
        if run is None or run.outcome.is_over:
            return None
        # Before its loop begins, a job is in the stage to come
        return run.stage or ("train" if run.job.fn == "fit" else run.job.fn)

    # ---- the ranks ----

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers changes, between `min_workers` and `num_workers`."""
        return self.min_workers < self.num_workers

    @property
    def workers_wanted(self) -> str:
        """How many workers were asked for, in words."""
        return (
            f"{self.min_workers} to {self.num_workers}"
            if self.is_elastic
            else str(self.num_workers)
        )

    @property
    def world_size(self) -> int:
        """Number of ranks; before a job those that were asked for, at most."""
        return self._run.world.size if self._run is not None else max(1, self.num_workers)

    @property
    def num_devices(self) -> int:
        """Number of ranks on each node."""
        return max(
            1,
            self.world_size
            // (self._run.world.num_nodes if self._run is not None else self.num_nodes),
        )

    @property
    def device_ids(self) -> list[int]:
        """Numbers of the devices on each node."""
        return list(self.gpus or range(self.num_devices))

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """Arguments for a DistributedSampler of one's own; None on one rank."""
        return (
            {"num_replicas": self.world_size, "rank": self.global_rank}
            if self.world_size > 1
            else None
        )

    @property
    def world(self) -> World:
        """This rank's place among the others."""
        assert self._run is not None, "no job was run yet"
        return self._run.world

    @property
    def global_rank(self) -> int:
        """Rank among all processes."""
        return self._run.world.rank if self._run is not None else 0

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this node."""
        return self._run.world.local_rank if self._run is not None else 0

    @property
    def node_rank(self) -> int:
        """Number of this node."""
        return self._run.world.node_rank if self._run is not None else 0

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.global_rank == 0

    def all_gather(self, data: object, sync_grads: bool = False) -> Any:
        """Stack the tensors of all ranks; see `LightningModule.all_gather`."""
        world = self.world
        tensors = tree_map(_as_tensor, data)
        return (
            tensors
            if world.size == 1
            else tree_map(lambda value: world.all_gather(value, sync_grads), tensors)
        )

    # ---- who listens ----

    @property
    def logger(self) -> Logger | None:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    @logger.setter
    def logger(self, logger: Logger | None) -> None:
        self.loggers = [logger] if logger else []

    @property
    def log_dir(self) -> str | None:
        """Folder of the first logger's files, else `default_root_dir`."""
        if not self.loggers:
            return self.default_root_dir
        logger = as_loggers(self.loggers)[0]
        return logger.log_dir or logger.save_dir

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """All callbacks that save checkpoints."""
        return [c for c in self.callbacks if isinstance(c, Checkpoint)]

    @property
    def storage_url(self) -> str | None:
        """`storage_path`, if it is a URL.

        Folders of checkpoints that have no other place lie below it.
        """
        return self.storage_path if self.storage_path and "://" in self.storage_path else None

    @property
    def savers(self) -> list[Callback]:
        """All callbacks whose files a fit may go on from."""
        return [c for c in self.callbacks if isinstance(c, (Checkpoint, RecoveryCheckpoint))]

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first ModelCheckpoint, or whatever else saves checkpoints, or None."""
        return next(
            (c for c in self.checkpoint_callbacks if isinstance(c, ModelCheckpoint)),
            next(iter(self.checkpoint_callbacks), None),
        )

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """All EarlyStopping callbacks."""
        return [c for c in self.callbacks if isinstance(c, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first EarlyStopping callback, or None."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> Bar | None:
        """The progress bar, or None."""
        return next((c for c in self.callbacks if isinstance(c, Bar)), None)

    def log_metrics(self, metrics: dict[str, object], step: int | None = None) -> None:
        """Send values to the loggers, at `step` or at the step that runs."""
        assert self._run is not None, "no job was run yet"
        self._run.metrics.logged.update(
            (name, torch.as_tensor(value)) for name, value in metrics.items()
        )
        self._run.log_metrics(metrics, step)

    def print(self, *args: object, **kwargs: Any) -> None:
        """Print on rank 0, above the progress bar."""
        if self.is_global_zero:
            bar = self.progress_bar_callback
            (bar.print if bar is not None else print)(*args, **kwargs)

    # ---- what it works with ----
    @property
    def lightning_module(self) -> LightningModule | None:
        """The module, never wrapped."""
        return self._module

    @property
    def datamodule(self) -> LightningDataModule | None:
        """The datamodule, or None."""
        return self._datamodule

    @datamodule.setter
    def datamodule(self, datamodule: LightningDataModule | None) -> None:
        self._datamodule = datamodule

    @property
    def model(self) -> torch.nn.Module | None:
        """The module as it is trained: wrapped by DDP on several ranks."""
        return (
            self._run.step_module
            if self._run is not None and self._run.step_module is not None
            else self._module
        )

    @property
    def optimizers(self) -> list[UserOptimizer]:
        """The optimizers; others may be set while a fit runs."""
        return self._run.optimizers if self._run is not None else []

    @optimizers.setter
    def optimizers(self, optimizers: list[UserOptimizer]) -> None:
        assert self._run is not None, "no job was run yet"
        engine_optimizers.use(self._run, optimizers)

    @property
    def wrapped_optimizers(self) -> list[LightningOptimizer]:
        """The optimizers whose `step` counts."""
        run = self._run
        if run is None:
            return []
        if run.wrapped_optimizers:
            return run.wrapped_optimizers
        return [CountedOptimizer(optimizer, run) for optimizer in run.optimizers]

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The schedulers and when they are stepped."""
        return self._run.schedulers if self._run is not None else []

    @property
    def train_dataloader(self) -> Loaders:
        """The training data this rank reads, in the nesting it was given in."""
        return self._loader("train")

    @property
    def val_dataloaders(self) -> Loaders:
        """The validation data this rank reads."""
        return self._loader("val")

    @property
    def test_dataloaders(self) -> Loaders:
        """The test data this rank reads."""
        return self._loader("test")

    @property
    def predict_dataloaders(self) -> Loaders:
        """The data to predict that this rank reads."""
        return self._loader("predict")

    @property
    def num_val_batches(self) -> list[float]:
        """Batches of each validation loader."""
        return self._num_batches("val")

    @property
    def num_test_batches(self) -> list[float]:
        """Batches of each test loader."""
        return self._num_batches("test")

    @property
    def num_predict_batches(self) -> list[float]:
        """Batches of each loader to predict."""
        return self._num_batches("predict")

    @property
    def fit_loop(self) -> Self:
        """The Trainer itself.

        Lightning keeps `max_epochs` and `min_epochs` in a `fit_loop`, where users set them.
        """
        return self

    @property
    def epoch_loop(self) -> Self:
        """The Trainer itself: Lightning keeps `max_steps` in `fit_loop.epoch_loop`."""
        return self

    @property
    def batch_idx(self) -> int:
        """Number of the batch in its epoch; -1 before the first."""
        return self.progress.batch - 1

    @property
    def total_batch_idx(self) -> int:
        """Number of the batch over all epochs; -1 before the first."""
        return self.progress.total_batches - 1

    @property
    def _batches_that_stepped(self) -> int:
        """The x-axis of the loggers, by Lightning's name."""
        return self.progress.log_steps

    # ---- what was predicted ----
    @property
    def predict_loop(self) -> Self:
        """The Trainer itself.

        Lightning keeps `predictions` and `epoch_batch_indices` in a `predict_loop`.
        """
        return self

    @property
    def predictions(self) -> list[Prediction]:
        """The predictions of this rank so far, as `predict` returns them; empty unless kept."""
        kept = self._run.outcome.predictions if self._run is not None else []
        return kept[0] if len(kept) == 1 else kept

    @property
    def epoch_batch_indices(self) -> list[list[list[int]]]:
        """For each loader, which samples the batches predicted so far were made of.

        Known while there is a BasePredictionWriter.
        """
        run = self._run
        if run is None or "predict" not in run.data.loaders:
            return []
        return [
            seen_indices(one)[: len(kept)]
            for one, kept in zip(
                run.data.loaders["predict"].flattened, run.outcome.predictions, strict=False
            )
        ]

    def batch_indices(self, batch_idx: int, dataloader_idx: int = 0) -> list[int]:
        """Return which samples one batch was made of; empty if that cannot be told.

        Known while there is a BasePredictionWriter.
        """
        seen = (
            seen_indices(self._run.data.loaders["predict"].flattened[dataloader_idx])
            if self._run is not None
            else []
        )
        return list(seen[batch_idx]) if seen else []

    # ---- numbers and devices ----
    @property
    def precision_plugin(self) -> Precision:
        """The number format of the run; before one, of the device it would take."""
        if self._run is not None:
            return self._run.precision
        # The driver may have no GPU, though its workers have
        kind = "cpu" if self.num_workers else self.accelerator
        return Precision(self.precision, choose_device(kind, 0, self.gpus))

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler of `16-mixed` on a GPU, or None."""
        return self.precision_plugin.scaler

    @contextmanager
    def init_module(self, empty_init: bool | None = None) -> Iterator[None]:
        """Make new tensors on the device and in the precision of this Trainer, in a `with` block.

        Args:
            empty_init: True leaves weights uninitialized, for a model whose weights are about to be
                loaded.

        Example:
            >>> with Trainer(precision="bf16-true", max_epochs=1).init_module():
            ...     model = BoringModel()
        """
        with self.precision_plugin.creating(bool(empty_init)):
            yield

    # ---- what was logged ----

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The latest value of everything logged, for callbacks and user code; tensors."""
        self._refresh()
        return self._metrics[0]

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """The latest value of everything sent to the loggers; tensors."""
        self._refresh()
        return self._metrics[1]

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The latest value of everything logged with `prog_bar=True`; numbers."""
        self._refresh()
        return to_numbers(self._metrics[2])

    @property
    def data_wait(self) -> float:
        """The share of training's time in which this rank waited for data; 0 below 5 s in all."""
        return 0.0 if self._run is None else self._run.data.wait.share

    def _refresh(self) -> None:
        if self._run is not None and not self._run.outcome.is_over:
            metrics = self._run.metrics
            metrics.refresh()
            self._metrics = (metrics.callback, metrics.logged, metrics.progress_bar)

    # ---- derived ----

    @property
    def state(self) -> TrainerState:
        """Which entry point runs, in which stage, and how it stands."""
        self._state.stage = RunningStage(self._stage) if self._stage is not None else None
        return self._state

    def comes_later(self, name: str | None) -> bool:
        """Tell whether a metric is one of validations that training does not wait for.

        See `raylit.async_validation`.
        """
        run = self._run
        return (
            name is not None
            and run is not None
            and run.validations is not None
            and not run.metrics.is_of_training(name)
        )

    def renewed_by(self, name: str) -> str | None:
        """Return the event after an epoch's last batch that renews a metric with these weights.

        Returns:
            `validation`, `epoch` for the epoch's end, which also brings the first value of an epoch
            of training, or None: none does, or this is another batch. As this rank knows.
        """
        run = self._run
        if run is None:
            return None
        kind = run.metrics.kind_in_training(name)
        if kind == "epoch" and (self.is_last_batch or name not in self.callback_metrics):
            return "epoch"
        if not self.is_last_batch:
            return None
        by_the_clock = self.val_check_time_s is not None
        if kind == "step" or by_the_clock or not run.data.checks_validation:
            return None
        return "validation" if validation_due(run) else None

    @property
    def enable_validation(self) -> bool:
        """Whether the fit that runs has a validation."""
        return self._run is not None and self._run.job.fn == "fit" and self._run.validates

    @property
    def num_sanity_val_batches(self) -> list[float]:
        """Batches of each validation loader that the sanity check reads."""
        return [min(self.num_sanity_val_steps, number) for number in self.num_val_batches]

    @property
    def estimated_stepping_batches(self) -> float:
        """Optimizer steps that this fit will take, for schedulers.

        Infinity if that cannot be told. Asks for the training data if need be.
        """
        run = self._run
        if run is None or self.state.fn != "fit":
            raise RuntimeError(
                "estimated_stepping_batches is known while a fit runs, for instance in"
                " configure_optimizers."
            )
        if self.max_epochs == -1:
            return float("inf") if self.max_steps == -1 else self.max_steps
        if "train" not in run.data.loaders:
            # Loading takes all ranks, and one alone may ask: the others load when they next meet
            run.meet(asks=True)
        batches = self.num_training_batches = run.data.loaders["train"].num_batches()
        if batches == float("inf"):
            return self.max_steps if self.max_steps != -1 else float("inf")
        assert self.max_epochs is not None
        accumulate = self.accumulate_grad_batches
        plan = run.job.rescale_plan
        if plan is not None:  # schedules, which this is for, go as far in an epoch as with all
            batches, accumulate = plan.meant(run.data.loaders["train"], accumulate)
        steps = math.ceil(batches / accumulate) * max(self.max_epochs, 1)
        return steps if self.max_steps == -1 else min(steps, self.max_steps)

    def _loader(self, stage: str) -> object:
        run = self._run
        return (
            run.data.loaders[stage].iterables
            if run is not None and stage in run.data.loaders
            else None
        )

    def _num_batches(self, stage: str) -> list[float]:
        run = self._run
        if run is None:
            return []
        loader = run.data.loaders.get(stage)
        if loader is None:
            return run.data.earlier_lengths.get(stage, [])
        return loader.lengths() if loader.most is None else loader.most


def _as_tensor(value: object) -> object:
    """Return a number or an array as a tensor, of the type that Lightning gives it."""
    dtype = {bool: torch.uint8, int: torch.int32}.get(type(value))
    return (
        torch.as_tensor(value, dtype=dtype)
        if isinstance(value, (bool, int, float, np.ndarray, np.generic))
        else value
    )
