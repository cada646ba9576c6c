"""Run: the live objects of one rank, from the start of a job to its end."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from raylit import data
from raylit.core.datamodule import LightningDataModule
from raylit.core.hooks import Hooks, is_overridden
from raylit.core.module import LightningModule
from raylit.core.progress import Progress
from raylit.engine import state
from raylit.errors import ConfigError, DataError
from raylit.metrics.entry import Entry, Key
from raylit.metrics.metrics import Metrics, to_numbers
from raylit.parallel import Precision, Strategy, World
from raylit.runtime.messages import warn_once

if TYPE_CHECKING:
    from raylit.core.job import Job, PendingValidations
    from raylit.core.optimizer import LightningOptimizer, LRSchedulerConfig
    from raylit.core.trainer import JobTrainer, RecoverySaver

SAVE_LOGGERS_EVERY_S = 1.0  # within an epoch

STAGE_OF = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
STEP_OF = {
    "train": "training_step",
    "val": "validation_step",
    "test": "test_step",
    "predict": "predict_step",
}


class Run:
    """What one rank works with.

    Attributes:
        limits: what is in effect now; see `Limits`.
        zero_grad: clears the gradients of the only optimizer of an automatic optimization.
        loop: runs the loop of the job and returns what `validate`, `test` and `predict` give to the
            user; the worker sets it.
        stage: what runs now: `train`, `sanity_check`, `validate`, `test`, `predict` or None.
        hooks: the overridden functions of each event.
        strategy: how the ranks keep the model in step.
        step_module: called with the arguments of `training_step`: the module wrapped by DDP or
            FSDP, or None when alone.
        compiled: what of the module is compiled while this run lasts.
        loaders: the loader of each stage, once it was asked for.
        earlier_lengths: for each stage of the jobs before, the batches of its loaders.
        is_over: whether the job has ended.
        val_entries: what validation logs; training has its own in `metrics`.
        resumed_from: what the checkpoint that this fit goes on from says of this rank alone, as far
            as it does; see `engine/exact.py`.
        counted_before: batches of the epoch, as those counted who saved the checkpoint, if they
            were another number of workers.
        skips_backward: whether epochs that begin now go forward only, without learning.
        forward_only: whether a training batch ends with `training_step`: what follows is up to it,
            or is not wanted.
        stop_agreed: whether `trainer.should_stop` is the same on all ranks; then, and not before,
            they may stop.
        next_agreement: the count of batches at which the ranks agree on both again; infinity when
            alone.
        agreed: the count, and monotonic seconds, when they did last.
        batch_s: seconds that a batch took since, on the slowest rank; until that is known, a guess
            that makes them agree soon.
        received_sigterm, received_sigint: whether this process was asked to end; the loop does so
            between two batches.
        signal_agreed: whether they are the same on all ranks.
        pauses: whether the loop has something to do between this batch and the next: to end, or to
            save a recovery checkpoint.
        recovery: what saves recovery checkpoints, while training runs.
        validations: those that training does not wait for, if it is not to.
        saved_at_end: whether it has saved the last.
        between_epochs: whether an epoch has ended, and neither the next one nor the end of training
            has begun.
        end_left: whether the fit goes on from there: if it was the last epoch, training has yet to
            end.
        validation_left: whether the fit goes on with a validation that was not ended.
        broken_validation: what of this rank's state a validation that an exception has ended had
            changed, as it was before.
        predictions: what `predict_step` returned, by loader, while prediction runs.
        failed_within_step: whether an exception ended the run in a batch that had not yet changed
            the weights.
        is_half_stepped: whether it came from within an optimizer's step or a backward pass that
            adds to gradients of earlier batches.
        last_validation: monotonic seconds at the end of the last validation.
        loggers_saved: likewise when the loggers last wrote what they held.
    """

    def __init__(self, job: Job, world: World) -> None:
        trainer = job.trainer
        self.job = job
        self.trainer: JobTrainer = trainer
        self.module: LightningModule = job.module
        self.datamodule: LightningDataModule | None = job.datamodule
        self.world = world
        self.device = world.device
        assert isinstance(
            trainer.strategy, Strategy
        )  # the contract, with the methods that only the engine calls
        self.strategy = trainer.strategy
        self.precision = Precision(trainer.precision, world.device)
        self.progress: Progress = trainer.progress
        self.limits = trainer.limits
        self.metrics = Metrics(world, self.module)
        self.hooks: Hooks = {}
        self.loop: Callable[[Run], Any] | None = None
        self.stage: str | None = None
        self.optimizers: list[Any] = []
        self.wrapped_optimizers: list[LightningOptimizer] = []
        self.zero_grad: Callable[[], None] = lambda: None
        self.schedulers: list[LRSchedulerConfig] = []
        self.step_module: nn.Module | None = None
        self.compiled: list[nn.Module] = []
        self._wrapped_for: list[bool] = []
        self.loaders: dict[str, data.CombinedLoader] = {}
        self.earlier_lengths: dict[str, list[float]] = {}
        self.loader_epoch: dict[str, int] = {}
        self.val_entries: dict[Key, Entry] = {}
        self.val_batches_seen: dict[int, int] = {}
        self.val_check_batch: float = float("inf")
        self.has_validated = self.is_over = False
        self.last_validation = self.loggers_saved = time.monotonic()
        self.resumed = False
        self.resumed_from: dict[str, Any] | None = None
        self.counted_before: int | None = None
        self.next_agreement = float("inf")
        self.agreed = (self.progress.total_batches, time.monotonic())
        self.batch_s = 2.0
        self.received_sigterm = self.received_sigint = self.pauses = False
        self.recovery: RecoverySaver | None = None
        self.validations: PendingValidations | None = None
        self.saved_at_end = self.failed_within_step = self.is_half_stepped = False
        self.validation_left = self.between_epochs = self.end_left = False
        self.broken_validation: dict[str, Any] | None = None
        self.stop_agreed = self.signal_agreed = world.size == 1
        self.predictions: list[list[Any]] = []
        self.history: list[dict[str, float]] = []
        self.transfer: Callable[[Any, int], Any] | None = None
        self.loss: torch.Tensor | None = None
        self.accumulating = True
        self.forward_only = False
        self.skips_backward = False
        self.needs_closure = self.checks_validation = self.said_minimum = False
        self.said_left_out: set[int] = set()

    def follow(self, before: Run) -> None:
        """Remember how much data the jobs before had, and if this is an evaluation of the same module, what checkpoints hold of its fit."""
        self.earlier_lengths = before.earlier_lengths | {
            stage: loader.lengths() for stage, loader in before.loaders.items()
        }
        if self.job.fn != "fit" and before.module is self.module:
            self.optimizers = before.optimizers
            self.schedulers = before.schedulers
            self.history = before.history

    @property
    def asked_to_end(self) -> bool:
        """Whether a signal came that all ranks know of."""
        return (self.received_sigterm or self.received_sigint) and self.signal_agreed

    # ---- for callbacks; see `RunHandle` ----

    @property
    def has_trained(self) -> bool:
        """Whether a batch has changed anything."""
        return self.progress.total_batches > self.failed_within_step

    def dump(self, weights_only: bool = False, together: bool = True) -> dict[str, Any]:
        """Return the checkpoint of the run as it is now; see `state.dump`."""
        return state.dump(self, weights_only, together)

    def request_pause(self) -> None:
        """Have the loop pause after this batch, to save a recovery checkpoint or to end."""
        self.pauses = True

    # ---- events ----

    def fire(self, name: str, *args: Any) -> None:
        """Call every function that overrides the event `name`, in order."""
        for function in self.hooks[name]:
            self.metrics.hook = name
            function(*args)
        self.metrics.hook = None

    def call(self, owner: object, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call one hook of the module or the datamodule; what it logs counts as logged there."""
        before = self.metrics.hook
        self.metrics.hook = name
        try:
            return getattr(owner, name)(*args, **kwargs)
        finally:
            self.metrics.hook = before

    watch: Callable[[object, str, Callable[..., Any]], Callable[..., Any]] | None = (
        None  # how hooks are wrapped for a profiler
    )

    def timed(self, action: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` as a profiler is to see it: as it is, since there is none."""
        return function

    def close(self) -> None:
        """The job has ended, well or not; called last."""

    def before_optimizer_step(self, optimizer: Any) -> None:
        """Gradients are complete: unscale them, tell who listens, clip them."""
        metrics = self.metrics
        module = self.module
        trainer = self.trainer
        before = metrics.hook
        if self.precision.scaler is not None:
            self.precision.scaler.unscale_(optimizer)
        if self.hooks["on_before_optimizer_step"]:
            self.fire("on_before_optimizer_step", optimizer)
        if module.automatic_optimization and self.clips:
            metrics.hook = "configure_gradient_clipping"
            value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            module.configure_gradient_clipping(
                optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm
            )
        metrics.hook = before

    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass of manual optimization with its hooks."""
        hook = self.metrics.hook
        if self.precision.scaler is not None:
            loss = self.precision.scaler.scale(loss)
        prepare = getattr(self.step_module, "prepare_backward", None)
        loss = loss if prepare is None else prepare(loss)
        self.fire("on_before_backward", loss)
        self.call(self.module, "backward", loss, *args, **kwargs)
        self.fire("on_after_backward")
        self.metrics.hook = hook

    def prepare_calls(self) -> None:
        """Find out once what the loop would otherwise ask at every batch."""
        module = self.module
        base = LightningModule
        self.choose_clipping()
        self.overrides_backward = is_overridden("backward", module, base)
        self.overrides_zero_grad = is_overridden("optimizer_zero_grad", module, base)
        self.overrides_batch_start = is_overridden("on_train_batch_start", module, base)
        self.takes_batch_idx = {
            step: _takes_batch_idx(getattr(module, step)) for step in STEP_OF.values()
        }
        self.transfer = self._choose_transfer()

    def choose_clipping(self) -> None:
        """Find out whether gradients are clipped.

        `gradient_clip_val` may be set while a fit runs, and counts from the next epoch on.
        """
        self.clips = bool(self.trainer.gradient_clip_val) or any(
            is_overridden(name, self.module, LightningModule)
            for name in ("configure_gradient_clipping", "clip_gradients")
        )

    def _choose_transfer(self) -> Callable[[Any, int], Any] | None:
        """Return how a batch gets to the device, or None where nothing is to be done."""
        names = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        owners: list[LightningModule | LightningDataModule] = []
        touched = self.device.type != "cpu" or self.precision.converts
        for name in names:
            by_data = self.datamodule is not None and is_overridden(
                name, self.datamodule, LightningDataModule
            )
            by_module = is_overridden(name, self.module, LightningModule)
            if by_data and by_module:
                warn_once(
                    f"{name} is overridden in both the module and the datamodule; the datamodule's"
                    " is used."
                )
            touched = touched or by_data or by_module
            owners.append(
                self.datamodule if by_data and self.datamodule is not None else self.module
            )
        if not touched:
            return None

        def transfer(batch: Any, dataloader_idx: int) -> Any:
            batch = self.precision.convert_input(batch)
            batch = self.call(owners[0], names[0], batch, dataloader_idx)
            batch = self.call(owners[1], names[1], batch, self.device, dataloader_idx)
            return self.call(owners[2], names[2], batch, dataloader_idx)

        return transfer

    def wrap(self) -> None:
        """Wrap the module for data parallelism.

        Anew if other parameters require gradients than when it was wrapped last.

        DDP synchronizes the gradients of those that required one when it was made: one unfrozen
        since would differ from rank to rank.
        """
        if self.world.size == 1:
            return
        required = [parameter.requires_grad for parameter in self.module.parameters()]
        if required != self._wrapped_for:
            self.step_module = None  # its hooks go with it
            self.step_module = self.strategy.wrap(self.module, self.world)
            self._wrapped_for = required

    # ---- data ----

    def has_data(self, stage: str) -> bool:
        """Tell whether loaders for `stage` were given or a hook would give them."""
        hook = f"{stage}_dataloader"
        return (
            self.job.data.get(stage) is not None
            or (
                self.datamodule is not None
                and is_overridden(hook, self.datamodule, LightningDataModule)
            )
            or is_overridden(hook, self.module, LightningModule)
        )

    def load(self, stage: str) -> data.CombinedLoader:
        """Ask for the data of `stage` and make it this rank's loader.

        Raises:
            DataError: nobody gives any, or what is given cannot be read.
        """
        hook = f"{stage}_dataloader"
        trainer = self.trainer
        given = self.job.data.get(stage)
        if given is not None:
            origin = f"Trainer.{self.job.fn}({'train_' if stage == 'train' else 'val_' if self.job.fn == 'fit' else ''}dataloaders=...)"
        else:
            by_data = self.datamodule is not None and is_overridden(
                hook, self.datamodule, LightningDataModule
            )
            owner: object = self.datamodule if by_data else self.module
            origin = f"{type(owner).__name__}.{hook}()"
            given = self.call(owner, hook)
            if given is None:
                raise DataError(
                    f"{origin} returned None. Return a DataLoader, an iterable, or a list or dict"
                    " of them."
                )
        self.world.barrier()
        limit = getattr(trainer, f"limit_{stage}_batches")
        overfits = (
            trainer.overfit_batches > 0 and stage in ("train", "val") and self.job.fn == "fit"
        )
        loader = data.prepare(
            given,
            stage,
            self.world,
            limit=limit,
            distribute=trainer.use_distributed_sampler,
            overfit=overfits,
            origin=origin,
            uneven=self.strategy.uneven,
            elastic=self.job.rescale_plan is not None,
        )
        self.loaders[stage] = loader
        self.loader_epoch[stage] = self.progress.epoch
        return loader

    def reload_due(self, stage: str) -> bool:
        """Tell whether `reload_dataloaders_every_n_epochs` asks for new loaders of `stage`."""
        every = self.trainer.reload_dataloaders_every_n_epochs
        return bool(every) and self.progress.epoch - self.loader_epoch[stage] >= every

    @property
    def validates(self) -> bool:
        """Whether this fit has a validation: a step, data and a limit above 0."""
        return (
            self.trainer.limit_val_batches != 0
            and is_overridden("validation_step", self.module, LightningModule)
            and self.has_data("val")
        )

    # ---- what was logged ----

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Send values to the loggers.

        `epoch` is added, and the x-axis is `step`, a logged key `step`, or the batches that
        stepped.
        """
        trainer = self.trainer
        if not metrics or not trainer.loggers or not self.world.is_zero:
            return
        numbers = to_numbers(metrics)
        if step is None:
            logged_step = numbers.pop("step", None)
            if logged_step is not None:
                step = int(logged_step)
            else:
                numbers.setdefault("epoch", self.progress.epoch)
                step = self.progress.log_steps
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step)
        if time.monotonic() - self.loggers_saved >= SAVE_LOGGERS_EVERY_S:
            self.save_loggers()

    def save_loggers(self) -> None:
        """Let the loggers write what they hold.

        So it is done before a checkpoint is written, which is not to know more than they.
        """
        self.loggers_saved = time.monotonic()
        if self.world.is_zero:
            for logger in self.trainer.loggers:
                logger.save()

    def remember(self, metrics: dict[str, Any]) -> None:
        """Keep epoch values for `Result.history`.

        Those of one step are one row, and rows are in the order of steps.
        """
        if not metrics or not self.world.is_zero:
            return
        # a logged "step" or "epoch" is an x-axis for the loggers, but no place in the history
        row: dict[str, float] = {
            **to_numbers(metrics),
            "epoch": self.progress.epoch,
            "step": self.progress.steps,
        }
        place = len(self.history)
        while (
            place and self.history[place - 1]["step"] > row["step"]
        ):  # as of a validation that was not waited for
            place -= 1
        if place and self.history[place - 1]["step"] == row["step"]:
            self.history[place - 1].update(row)
        else:
            self.history.insert(place, row)


def _takes_batch_idx(step: Callable[..., Any]) -> bool:
    """Tell whether a step wants the number of the batch.

    By name, as a second argument, or through `*args`.
    """
    parameters = inspect.signature(step).parameters
    positional = [
        p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    by_name = any(parameter.name == "batch_idx" for parameter in positional)
    return (
        by_name
        or len(positional) >= 2
        or any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    )


def check_dataloader_idx(module: LightningModule, step: str, num_loaders: int) -> None:
    """Check that a step takes `dataloader_idx` if, and only if, there are several loaders.

    Raises:
        ConfigError: it does not.
    """
    parameter = inspect.signature(getattr(module, step)).parameters.get("dataloader_idx")
    variadic = any(
        p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in inspect.signature(getattr(module, step)).parameters.values()
    )
    if num_loaders > 1 and parameter is None and not variadic:
        raise ConfigError(
            f"There are {num_loaders} loaders, so {step} must tell them apart: def {step}(self,"
            " batch, batch_idx, dataloader_idx=0)."
        )
    if num_loaders == 1 and parameter is not None and parameter.default is parameter.empty:
        raise ConfigError(
            f"There is one loader, but {step} wants dataloader_idx. Give it a default: def"
            f" {step}(self, batch, batch_idx, dataloader_idx=0)."
        )


def submodule_modes(module: nn.Module) -> dict[str, bool]:
    """Return the train/eval mode of every submodule."""
    return {name: child.training for name, child in module.named_modules()}


def restore_modes(module: nn.Module, modes: dict[str, bool]) -> None:
    """Give every submodule the mode back that it had; new ones are left alone."""
    for name, child in module.named_modules():
        if name in modes:
            child.training = modes[name]


def no_grad_context(run: Run) -> Any:
    """Return the context of an evaluation.

    Inference mode where it is wanted and possible, else no_grad.
    """
    inference = (
        run.trainer.inference_mode
        and run.job.fn != "fit"
        and not (run.world.size > 1 and (run.strategy.shards or run.device.type == "cpu"))
    )
    return torch.inference_mode() if inference else torch.no_grad()
