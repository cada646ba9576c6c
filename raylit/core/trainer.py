"""Contracts of the Trainer, for all that stands below `raylit.trainer`.

Callbacks and modules are handed a `RunningTrainer`. `JobTrainer` adds the members for those who do
a job: the engine, the launchers and `raylit.check`. `RunHandle`, which is `trainer.run`, is all
that a callback may ask of the run itself.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from raylit.runtime.aliases import Arguments, CheckpointDict, Loaders, Prediction, UserOptimizer

if TYPE_CHECKING:
    from os import PathLike

    import torch
    from torch import Tensor, nn

    from raylit.checkpoint.io import CheckpointIO
    from raylit.core.callback import Callback, Checkpoint
    from raylit.core.datamodule import LightningDataModule
    from raylit.core.job import Display, Result, ValidationSettings
    from raylit.core.limits import Limits
    from raylit.core.logger import Logger
    from raylit.core.module import LightningModule
    from raylit.core.optimizer import LightningOptimizer, LRSchedulerConfig
    from raylit.core.progress import Progress
    from raylit.core.states import TrainerState
    from raylit.runtime.ranks import Ranks

T = TypeVar("T")


class Strategy(Protocol):
    """How the ranks keep one model in step; see `raylit.parallel.Strategy`."""

    @property
    def shards(self) -> bool:
        """Whether a rank holds a part of each parameter only."""

    @property
    def saves_folders(self) -> bool:
        """Whether a checkpoint is a folder into which every rank writes its part."""

    @property
    def saves_in_background(self) -> bool:
        """Whether it does so while training goes on."""

    @property
    def find_unused_parameters(self) -> bool:
        """Whether parameters may get no gradient in a step."""

    @property
    def process_group_backend(self) -> str | None:
        """Torch's name of the backend for collectives; None for the default of the device."""

    def timeout_s(self) -> float:
        """Return how many seconds a rank waits for one that hangs."""

    @property
    def root_device(self) -> torch.device:
        """Where this rank computes."""

    @property
    def global_rank(self) -> int:
        """Rank among all processes."""

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this node."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""

    def refuse_if_sharded(self, what: str) -> None:
        """Raise a ConfigError if no rank has the whole model, which the feature `what` needs."""

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks."""

    def broadcast(self, obj: T, src: int = 0) -> T:
        """Return the `obj` of rank `src` on every rank."""

    def all_gather(self, tensor: Tensor, group: object = None, sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors stacked."""

    def reduce(self, tensor: object, group: object = None, reduce_op: str | None = "mean") -> Any:
        """Return the `mean` or the `sum` of the ranks' tensors."""

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return whether all ranks (or any of them) decided so."""


class Precision(Protocol):
    """The number format of a run; see `raylit.parallel.Precision`."""

    @property
    def dtype(self) -> torch.dtype:
        """Format of the compute."""

    @property
    def precision(self) -> str:
        """Canonical name, such as `bf16-mixed`."""

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler, or None where none is needed."""

    def context(self) -> AbstractContextManager[None]:
        """The context in which a step runs."""


class Profiler(Protocol):
    """Measures where the time goes; see `raylit.profilers.Profiler`."""

    def start(self, action_name: str) -> None:
        """An action begins."""

    def stop(self, action_name: str) -> None:
        """An action has ended."""

    def profile(self, action_name: str) -> AbstractContextManager[str]:
        """The context in which an action runs."""


class RecoverySaver(Protocol):
    """Saves recovery checkpoints between two batches, when the loop says so.

    Attributes:
        is_wanted: whether this rank would like one.
        is_due: whether one is to be saved after this batch, as all ranks know.
    """

    is_wanted: bool
    is_due: bool

    def save(self, run: RunHandle, *, ending: bool = False) -> None:
        """Take the state of the run. Called on all ranks; `ending`: before the fit ends."""


class RunHandle(Protocol):
    """All that a callback may ask of the run that goes on.

    Attributes:
        recovery: saves recovery checkpoints, while training runs.
        skips_backward: whether epochs that begin now go forward only, without learning.
        replaces_schedulers: whether a callback has put another scheduler in the place of those that
            the checkpoint holds.
    """

    recovery: RecoverySaver | None
    skips_backward: bool
    replaces_schedulers: bool

    @property
    def trainer(self) -> RunningTrainer:
        """The Trainer."""

    @property
    def world(self) -> Ranks:
        """This rank's place among the others."""

    @property
    def progress(self) -> Progress:
        """The counters."""

    @property
    def asked_to_end(self) -> bool:
        """Whether a signal came that all ranks know of."""

    @property
    def has_trained(self) -> bool:
        """Whether a batch has changed anything."""

    @property
    def saved_at_end(self) -> bool:
        """Whether the last recovery checkpoint of the fit was saved."""

    @property
    def is_half_done(self) -> bool:
        """Whether an exception came from the middle of a step, whose traces cannot be undone."""

    @property
    def lineage(self) -> list[str]:
        """The names of this fit, the last, and of those that it goes on from."""

    def dump(
        self, weights_only: bool = False, together: bool = True, lenient: bool = False
    ) -> CheckpointDict:
        """Return the checkpoint of the run as it is now: plain data, ready to be written.

        Args:
            weights_only: leave out what only a continued training needs.
            together: whether all ranks call this, so that each can give what it alone knows.
            lenient: leave out what is no plain data, and say so, instead of raising.

        Raises:
            CheckpointError: it holds what is no plain data, or this rank alone does not have the
                whole of it.
        """

    def settle_loggers(self) -> None:
        """Wait until all logged values would outlive this machine, before a checkpoint counts.

        May be called from any thread.
        """

    def request_pause(self) -> None:
        """Have the loop pause after this batch, to end or to save a recovery checkpoint.

        On several ranks all have to ask, after the same batch. May be called from any thread.
        """

    def request_end(self) -> None:
        """Have the fit saved and ended after this batch, as by SIGTERM.

        One rank is enough. May be called from any thread.
        """


class RunningTrainer(Protocol):
    """The Trainer as callbacks and modules read it while a job runs.

    Names and meanings are Lightning's. Attributes that are not properties may be set too.
    """

    callbacks: list[Callback]
    loggers: list[Logger]
    should_stop: bool
    accumulate_grad_batches: int
    gradient_clip_val: float | None
    gradient_clip_algorithm: str | None
    max_epochs: int | None
    min_epochs: int | None
    max_steps: int
    min_steps: int | None
    limit_train_batches: int | float
    limit_val_batches: int | float
    limit_test_batches: int | float
    limit_predict_batches: int | float
    num_sanity_val_steps: float
    val_check_interval: int | float
    check_val_every_n_epoch: int | None
    log_every_n_steps: int
    num_training_batches: float
    ckpt_path: str | None

    # ---- where it is ----
    @property
    def run(self) -> RunHandle | None:
        """The run that goes on, for callbacks; None before the first."""

    @property
    def state(self) -> TrainerState:
        """Which entry point runs, in which stage, and how it stands."""

    @property
    def progress(self) -> Progress:
        """The counters that are saved."""

    @property
    def current_epoch(self) -> int:
        """Epochs completed; the number of the one that runs."""

    @property
    def global_step(self) -> int:
        """Optimizer steps taken."""

    @property
    def is_last_batch(self) -> bool:
        """Whether the batch being trained on is the epoch's last."""

    @property
    def has_validated(self) -> bool:
        """Whether validation has run to its end in this fit."""

    @property
    def enable_validation(self) -> bool:
        """Whether the fit that runs has a validation."""

    @property
    def should_log_step(self) -> bool:
        """Whether the step values of this batch are due at the loggers."""

    def should_log_batch(self, batch_idx: int, dataloader_idx: int = 0) -> bool:
        """Tell whether values of this batch of an evaluation or prediction are due."""

    def comes_later(self, name: str | None) -> bool:
        """Tell whether a metric is one of validations that training does not wait for."""

    def renewed_by(self, name: str) -> str | None:
        """Tell which event renews a metric after an epoch's last batch: `validation` or `epoch`."""

    @property
    def sanity_checking(self) -> bool:
        """Whether validation runs ahead of training."""

    @property
    def training(self) -> bool:
        """Whether training runs."""

    @property
    def validating(self) -> bool:
        """Whether validation runs."""

    @property
    def testing(self) -> bool:
        """Whether test runs."""

    @property
    def predicting(self) -> bool:
        """Whether prediction runs."""

    @property
    def evaluating(self) -> bool:
        """Whether validation or test runs, the sanity check among them."""

    @property
    def interrupted(self) -> bool:
        """Whether an exception ended the last job."""

    @property
    def received_sigterm(self) -> bool:
        """Whether this process was asked to end."""

    @property
    def estimated_stepping_batches(self) -> float:
        """Optimizer steps that this fit will take, for schedulers."""

    @property
    def fit_loop(self) -> Self:
        """The Trainer itself: Lightning keeps `max_epochs` and `min_epochs` in a `fit_loop`."""

    @property
    def epoch_loop(self) -> Self:
        """The Trainer itself: Lightning keeps `max_steps` in `fit_loop.epoch_loop`."""

    # ---- what it works with ----
    @property
    def lightning_module(self) -> LightningModule | None:
        """The module, never wrapped."""

    @property
    def datamodule(self) -> LightningDataModule | None:
        """The datamodule, or None."""

    @property
    def model(self) -> nn.Module | None:
        """The module as it is trained: wrapped by DDP on several ranks."""

    @property
    def optimizers(self) -> list[UserOptimizer]:
        """The optimizers; others may be set while a fit runs."""

    @optimizers.setter
    def optimizers(self, optimizers: list[UserOptimizer]) -> None: ...

    @property
    def wrapped_optimizers(self) -> list[LightningOptimizer]:
        """The optimizers whose `step` counts."""

    @property
    def lr_scheduler_configs(self) -> list[LRSchedulerConfig]:
        """The schedulers and when they are stepped."""

    @property
    def strategy(self) -> Strategy:
        """How the ranks keep the model in step."""

    @property
    def precision(self) -> str:
        """Canonical name of the number format, such as `bf16-mixed`."""

    @property
    def precision_plugin(self) -> Precision:
        """The number format of the run."""

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The gradient scaler of `16-mixed` on a GPU, or None."""

    @property
    def profiler(self) -> Profiler:
        """The profiler, which measures where the time goes."""

    @property
    def train_dataloader(self) -> Loaders:
        """The training data this rank reads, in the nesting it was given in."""

    @property
    def val_dataloaders(self) -> Loaders:
        """The validation data this rank reads."""

    @property
    def test_dataloaders(self) -> Loaders:
        """The test data this rank reads."""

    @property
    def predict_dataloaders(self) -> Loaders:
        """The data to predict that this rank reads."""

    @property
    def num_val_batches(self) -> list[float]:
        """Batches of each validation loader."""

    @property
    def num_sanity_val_batches(self) -> list[float]:
        """Batches of each validation loader that the sanity check reads."""

    @property
    def num_test_batches(self) -> list[float]:
        """Batches of each test loader."""

    @property
    def num_predict_batches(self) -> list[float]:
        """Batches of each loader to predict."""

    # ---- the ranks ----
    @property
    def world(self) -> Ranks:
        """This rank's place among the others."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    @property
    def num_nodes(self) -> int:
        """Number of nodes that were asked for."""

    @property
    def num_devices(self) -> int:
        """Number of ranks on each node."""

    @property
    def global_rank(self) -> int:
        """Rank among all processes."""

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this node."""

    @property
    def node_rank(self) -> int:
        """Number of this node."""

    @property
    def checkpoint_io(self) -> CheckpointIO | None:
        """How the user wants checkpoints written, read and deleted; None: raylit's own way."""

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""

    def all_gather(self, data: object, sync_grads: bool = False) -> Any:
        """Stack the tensors of all ranks; see `LightningModule.all_gather`."""

    # ---- who listens ----
    @property
    def logger(self) -> Logger | None:
        """The first logger, or None."""

    @property
    def log_dir(self) -> str | None:
        """Folder of the first logger's files, else `default_root_dir`."""

    @property
    def default_root_dir(self) -> str:
        """Folder for whatever has no folder of its own."""

    @property
    def storage_url(self) -> str | None:
        """The URL below which checkpoints lie that have no other place, or None."""

    @property
    def checkpoint_callback(self) -> Checkpoint | None:
        """The first ModelCheckpoint, or whatever else saves checkpoints, or None."""

    @property
    def checkpoint_callbacks(self) -> list[Checkpoint]:
        """All callbacks that save checkpoints."""

    @property
    def display(self) -> Display | None:
        """Where the progress bar of rank 0 sends its pictures, or None to draw them here."""

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The latest value of everything logged; tensors."""

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        """The latest value of everything sent to the loggers; tensors."""

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The latest value of everything logged with `prog_bar=True`; numbers."""

    @property
    def data_wait(self) -> float:
        """The share of training's time in which this rank waited for data."""

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Send values to the loggers, at `step` or at the step that runs."""

    def print(self, *args: object, **kwargs: Any) -> None:
        """Print on rank 0, above the progress bar."""

    # ---- what was predicted ----
    @property
    def predict_loop(self) -> Self:
        """The Trainer itself: Lightning keeps `predictions` in a `predict_loop`."""

    @property
    def predictions(self) -> list[Prediction]:
        """The results of `predict_step` so far on this rank; empty unless they are kept."""

    @property
    def epoch_batch_indices(self) -> list[list[list[int]]]:
        """For each loader, which samples the batches predicted so far were made of."""

    def batch_indices(self, batch_idx: int, dataloader_idx: int = 0) -> list[int]:
        """Return which samples one batch was made of; empty if that cannot be told."""

    # ---- settings ----
    @property
    def fast_dev_run(self) -> int | bool:
        """Batches of a fast dev run, 0 for a real one."""

    @property
    def overfit_batches(self) -> int | float:
        """Batches that are trained on and validated, unshuffled; 0: all of them."""

    @property
    def val_check_time_s(self) -> float | None:
        """Seconds between two validations, or None if they are counted in batches."""

    @property
    def reload_dataloaders_every_n_epochs(self) -> int:
        """After how many epochs the loaders are asked for anew; 0: never."""

    @property
    def accelerator(self) -> str:
        """The kind of device that was asked for."""

    @property
    def barebones(self) -> bool:
        """Whether all that may cost speed is off."""

    @property
    def num_workers(self) -> int:
        """Ray workers, at most; 0: training runs in the process of the user."""

    # ---- what it does ----
    def save_checkpoint(
        self,
        filepath: str | PathLike[str],
        weights_only: bool | None = None,
        storage_options: Arguments | None = None,
    ) -> None:
        """Write a checkpoint of the run as it is now. Call it on all ranks; rank 0 writes."""

    def backward(self, loss: object, *args: object, **kwargs: object) -> None:
        """Run the backward pass with its hooks; see `LightningModule.manual_backward`."""


class JobTrainer(RunningTrainer, Protocol):
    """The Trainer of a Job, as those see it who do the job.

    Attributes:
        limits: what is in effect now; the attributes of the same names are these.
    """

    limits: Limits

    # ---- a job's beginning and end on a rank ----
    def begin(self, run: RunHandle) -> None:
        """A job begins on this rank: `run` is its engine's Run."""

    def end(self, run: RunHandle) -> None:
        """The job has ended on this rank."""

    # ---- further settings ----
    @property
    def gpus(self) -> tuple[int, ...] | None:
        """The numbers of the GPUs that were asked for; None: the first ones."""

    @property
    def changed_arguments(self) -> dict[str, object]:
        """The arguments that differ from their defaults."""

    @property
    def async_validation(self) -> ValidationSettings | None:
        """How validation runs that training does not wait for, or None."""

    @property
    def compile(self) -> Arguments | None:
        """Arguments of torch.compile, or None for none of it."""

    @property
    def deterministic(self) -> bool | str | None:
        """Whether algorithms have to be deterministic; `warn`: only say where they are not."""

    @property
    def benchmark(self) -> bool | None:
        """Whether cuDNN looks for the fastest algorithm."""

    @property
    def detect_anomaly(self) -> bool:
        """Whether autograd looks for NaN."""

    @property
    def inference_mode(self) -> bool:
        """Whether evaluation outside of fit runs in inference mode."""

    @property
    def strict_checkpoints(self) -> bool:
        """Whether saving refuses objects that are no plain data."""

    @property
    def sync_batchnorm(self) -> bool:
        """Whether batch norm statistics are taken over all ranks."""

    @property
    def use_distributed_sampler(self) -> bool:
        """Whether loaders are sharded over the ranks."""

    @property
    def min_workers(self) -> int:
        """Ray workers, at least."""

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers changes with the cluster."""

    @property
    def workers_wanted(self) -> str:
        """How many workers were asked for, in words."""

    @property
    def launcher(self) -> str:
        """The launcher that starts the workers: `ray` or `local`."""

    @property
    def start_method(self) -> str:
        """How local processes are started: `spawn` or `fork`."""

    @property
    def use_gpu(self) -> bool | None:
        """Whether each Ray worker gets a GPU; None: where the cluster has as many."""

    @property
    def resources_per_worker(self) -> dict[str, float] | None:
        """The resources that each Ray worker reserves."""

    @property
    def max_failures(self) -> Any:
        """How often workers are restarted: a number, or a `ray.train.FailureConfig`."""

    @property
    def storage_path(self) -> str | None:
        """Folder or URL that all nodes reach, or None."""

    @property
    def savers(self) -> list[Callback]:
        """All callbacks whose files a fit may go on from."""

    # ---- further jobs, of a Trainer like this one ----
    def replaced(self, **arguments: object) -> JobTrainer:
        """Return a new Trainer with the arguments this one was made with, but for those given."""

    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Loaders = None,
        val_dataloaders: Loaders = None,
        datamodule: LightningDataModule | None = None,
    ) -> Result:
        """Train `model`."""
