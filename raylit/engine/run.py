"""Run: the live objects of one rank, from the start of a job to its end."""

from __future__ import annotations

import inspect
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from raylit import data
from raylit.core.callback import Callback
from raylit.core.datamodule import LightningDataModule
from raylit.core.hooks import Hooks, is_overridden, resolve
from raylit.core.logger import Logger, as_loggers
from raylit.core.module import LightningModule
from raylit.core.progress import BACKWARD, CLIPPING, GRADIENTS, Progress
from raylit.engine import optimizers, state
from raylit.engine.data_wait import DataWait
from raylit.engine.history import History, Row
from raylit.engine.monitor import Monitor
from raylit.errors import ConfigError, DataError, WrongStateError
from raylit.metrics.entry import Entry, Key
from raylit.metrics.metrics import Metrics, to_numbers
from raylit.parallel import Precision, Strategy, World
from raylit.runtime import rng
from raylit.runtime.aliases import Batch, CheckpointDict, StateDict, StepOutput, UserOptimizer
from raylit.runtime.messages import warn_once

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from raylit.core.job import Job, PendingValidations
    from raylit.core.optimizer import LightningOptimizer, LRSchedulerConfig
    from raylit.core.trainer import JobTrainer, RecoverySaver

SAVE_LOGGERS_EVERY_S = 1.0  # within an epoch
SETTLE_LOGGERS_S = 10.0  # how long a checkpoint waits for what was logged before it

STAGE_OF = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
STEP_OF = {
    "train": "training_step",
    "val": "validation_step",
    "test": "test_step",
    "predict": "predict_step",
}


@dataclass(frozen=True)
class Calls:
    """Answers that the loop would otherwise look up at every batch.

    Never changed, but replaced as a whole: by `Run.resolve_calls`, `optimizers.use`, and
    `Run.renew_calls` where an epoch begins.

    Attributes:
        overrides_backward, overrides_zero_grad, overrides_batch_start, overrides_clipping: whether
            the module brings its own.
        takes_batch_idx: for each step whether it wants the number of the batch.
        transfer: brings a batch to the device; None where nothing is to be done.
        clips: whether gradients are clipped.
        zero_grad: clears the gradients of the only optimizer of an automatic optimization.
        needs_closure: whether the optimizer is stepped with a closure.
        forward_only: whether a training batch ends with `training_step`: what follows is up to it,
            or is not wanted.
    """

    overrides_backward: bool = False
    overrides_zero_grad: bool = False
    overrides_batch_start: bool = False
    overrides_clipping: bool = False
    takes_batch_idx: dict[str, bool] = field(default_factory=dict)
    transfer: Callable[[Batch, int], Batch] | None = None
    clips: bool = False
    zero_grad: Callable[[], None] = lambda: None
    needs_closure: bool = False
    forward_only: bool = False


@dataclass
class Agreement:
    """Decisions that the ranks make together every few batches: to stop, end, save, validate.

    `schedule.agree_on_stop` writes it. Others only ask: signal handlers set `received_*`, and
    `Run.request_end` and `Run.request_pause` set `pauses`.

    Attributes:
        stop_agreed: whether `trainer.should_stop` is the same on all ranks; then, and not before,
            they may stop.
        signal_agreed: likewise the signals.
        received_sigterm, received_sigint: whether this process was asked to end; the loop does so
            between two batches.
        pauses: whether the loop has something to do between this batch and the next: to end, or to
            save a recovery checkpoint.
        next_at: the count of batches at which the ranks agree again; infinity when alone.
        last: the count, and monotonic seconds, when they did last.
        batch_s: seconds that a batch took since, on the slowest rank; until that is known, a guess
            that makes them agree soon.
        validates: whether the time has come to validate, on any rank.
        said_minimum: whether it was said that a stop has to wait.
    """

    stop_agreed: bool
    signal_agreed: bool
    last: tuple[int, float]
    received_sigterm: bool = False
    received_sigint: bool = False
    pauses: bool = False
    next_at: float = float("inf")
    batch_s: float = 2.0
    validates: bool = False
    said_minimum: bool = False

    @property
    def asked_to_end(self) -> bool:
        """Whether a signal came that all ranks know of."""
        return (self.received_sigterm or self.received_sigint) and self.signal_agreed


@dataclass
class Resume:
    """The checkpoint that a fit goes on from, as far as the loop still needs it.

    `state.restore_training` fills it, and the loop takes out the parts that it has used.

    Attributes:
        resumed: whether there is one.
        own: what it says of this rank alone, as far as it does; see `engine/exact.py`.
        has_values: whether it holds the values that were logged.
        lineage: the names of this fit, the last, and of those that it goes on from.
        loaders: the states of the loaders of training, until they were given back.
        loader_epochs: for each stage the epoch in which its loaders were asked for.
        counted_before: batches of the epoch, as those counted who saved the checkpoint, if they
            were another number of workers.
        has_gradients: whether the gradients of the batch that comes next are there already.
        before_validation: what of this rank's state a validation changes, as it was before the one
            that runs; the loop and `evaluation.evaluate` write it.
    """

    resumed: bool = False
    own: StateDict | None = None
    has_values: bool = True
    lineage: list[str] = field(default_factory=lambda: [_new_name()])
    loaders: list[StateDict] | None = None
    loader_epochs: dict[str, int] = field(default_factory=dict)
    counted_before: int | None = None
    has_gradients: bool = False
    before_validation: StateDict | None = None


def _fresh_seed() -> int:
    """Return a seed that stands for the random state of this process, without drawing from it."""
    return rng.digest(torch.get_rng_state().numpy().tobytes())


@dataclass
class RunData:
    """The data of a run. `Run.load` and the loops write it.

    Attributes:
        loaders: the loader of each stage, once it was asked for.
        loader_epoch: the epoch in which that was.
        is_reading: whether the reading of an epoch's training data has begun ahead of the epoch.
        seed: of the random numbers in loader workers: another one in each fit, kept by its
            checkpoints.
        earlier_lengths: for each stage of the jobs before, the batches of its loaders.
        val_batches_seen: for each loader the batches of all validations.
        val_check_batch: after how many batches of training validation is due.
        last_validation: monotonic seconds at the end of the last validation.
        checks_validation: whether a batch may be followed by one.
        wait: how long training waited for batches.
        example: a batch of which a logger makes the example of the model's inputs.
        noted: the stages of whose data the loggers know.
    """

    loaders: dict[str, data.CombinedLoader] = field(default_factory=dict)
    loader_epoch: dict[str, int] = field(default_factory=dict)
    is_reading: bool = False
    seed: int = field(default_factory=_fresh_seed)
    earlier_lengths: dict[str, list[float]] = field(default_factory=dict)
    val_batches_seen: dict[int, int] = field(default_factory=dict)
    val_check_batch: float = float("inf")
    last_validation: float = field(default_factory=time.monotonic)
    checks_validation: bool = False
    wait: DataWait = field(default_factory=DataWait)
    example: Batch = None
    noted: set[str] = field(default_factory=set)


@dataclass
class Outcome:
    """The outcome of a run, for whoever asks afterwards. The loops write it.

    Attributes:
        history: the epoch values so far.
        predictions: what `predict_step` returned, by loader, while prediction runs.
        has_validated: whether validation has run to its end in this fit.
        saved_at_end: whether the last recovery checkpoint was saved.
        said: the objects in checkpoints of which the user has been told, by what was said of them.
        is_over: whether the job has ended; the Trainer sets it.
    """

    history: History = field(default_factory=History)
    predictions: list[list[StepOutput]] = field(default_factory=list)
    has_validated: bool = False
    saved_at_end: bool = False
    said: set[str] = field(default_factory=set)
    is_over: bool = False


class Run:
    """The run of one job on one rank: all that the loops work with.

    The parts of the job are fixed; those that change are grouped by who writes them: `progress`,
    `calls`, `agreement`, `resume`, `data`, `outcome`.

    Attributes:
        limits: what is in effect now; see `Limits`.
        loop: runs the loop of the job and returns what `validate`, `test` and `predict` give to the
            user; the worker sets it.
        stage: what runs now: `train`, `sanity_check`, `validate`, `test`, `predict` or None; the
            loops set it.
        hooks: the overridden functions of each event.
        strategy: how the ranks keep the model in step.
        optimizers, wrapped_optimizers, schedulers: what `configure_optimizers` gave.
        counting: handles of what counts steps by hand.
        step_module: called with the arguments of `training_step`: the module wrapped by DDP or
            FSDP, or None when alone.
        compiled: what of the module is compiled while this run lasts.
        monitor: what raylit measures by itself.
        val_entries: what validation logs; training has its own in `metrics`.
        skips_backward: whether epochs that begin now go forward only, without learning.
        replaces_schedulers: whether a callback has put another scheduler in the place of those that
            the checkpoint holds.
        recovery: what saves recovery checkpoints, while training runs.
        validations: those that training does not wait for, if it is not to.
        loss: the loss that backward ran on; None if the step returned none.
        output: what `training_step` returned, while hooks run that may save its gradients.
        accumulating: whether a batch that does not step leaves gradients on its rank.
        loggers_saved: monotonic seconds when the loggers last wrote what they held.
    """

    def __init__(self, job: Job, world: World) -> None:
        trainer = job.trainer
        self.job = job
        self.trainer: JobTrainer = trainer
        self.module: LightningModule = job.module
        self.datamodule: LightningDataModule | None = job.datamodule
        self.world = world
        self.device = world.device
        # the contract, with the methods that only the engine calls
        assert isinstance(trainer.strategy, Strategy)
        self.strategy = trainer.strategy
        self.precision = Precision(trainer.precision, world.device)
        self.progress: Progress = trainer.progress
        self.limits = trainer.limits
        self.calls = Calls()
        self.agreement = Agreement(
            stop_agreed=world.size == 1,
            signal_agreed=world.size == 1,
            last=(self.progress.total_batches, time.monotonic()),
        )
        self.resume = Resume()
        self.data = RunData()
        self.outcome = Outcome()
        self.metrics = Metrics(world, self.module)
        self.monitor = Monitor(self, as_loggers(trainer.loggers) if world.is_zero else ())
        self.val_entries: dict[Key, Entry] = {}
        self.hooks: Hooks = {}
        self.loop: Callable[[Run], object] | None = None
        self.stage: str | None = None
        self.optimizers: list[UserOptimizer] = []
        self.wrapped_optimizers: list[LightningOptimizer] = []
        self.counting: list[RemovableHandle] = []
        self.schedulers: list[LRSchedulerConfig] = []
        self.step_module: nn.Module | None = None
        self.compiled: list[nn.Module] = []
        self._wrapped_for: list[bool] = []
        self.recovery: RecoverySaver | None = None
        self.validations: PendingValidations | None = None
        self.skips_backward = False
        self.replaces_schedulers = False
        self.loss: torch.Tensor | None = None
        self.output: StepOutput = None
        self.accumulating = True
        self.loggers_saved = time.monotonic()

    def follow(self, before: Run) -> None:
        """Remember how much data the jobs before had.

        If this is an evaluation of the same module, remember also the optimizers, schedulers and
        history of its fit, which checkpoints hold.
        """
        self.data.earlier_lengths = before.data.earlier_lengths | {
            stage: loader.lengths() for stage, loader in before.data.loaders.items()
        }
        if self.job.fn != "fit" and before.module is self.module:
            self.optimizers = before.optimizers
            self.schedulers = before.schedulers
            self.outcome.history = before.outcome.history

    def dry_run(self, callbacks: Sequence[Callback]) -> Run:
        """Return a new run of the same job, for a loop that leaves no trace in this one.

        It has the model, the optimizers and schedulers of this run, and nothing else of it; of
        callbacks only those given.
        """
        trial = Run(self.job, self.world)
        trial.loop = self.loop
        trial.monitor = Monitor(trial, ())
        trial.step_module = self.step_module
        trial._wrapped_for = self._wrapped_for
        # The trial's overflows are not to change the scale that this run goes on with
        trial.precision = self.precision.fresh()
        trial.schedulers = self.schedulers
        trial.stage = self.stage
        trial.resolve_calls()
        # The hooks of this run count for the trial too: both have the Progress of the Trainer
        optimizers.use(trial, self.optimizers, counts=False)
        trial.hooks = resolve(self.trainer, self.module, callbacks, LightningModule)
        return trial

    # ---- for callbacks; see `RunHandle` ----

    @property
    def has_trained(self) -> bool:
        """Whether a batch has changed anything."""
        automatic = self.module.automatic_optimization
        return self.progress.to_go_on_from(automatic=automatic).total_batches > 0

    @property
    def is_half_done(self) -> bool:
        """Whether the batch, were it ended now, has left traces that nothing can undo."""
        return self.progress.is_half_done(
            automatic=self.module.automatic_optimization,
            accumulate=self.limits.accumulate_grad_batches,
        )

    @property
    def asked_to_end(self) -> bool:
        """Whether a signal came that all ranks know of."""
        return self.agreement.asked_to_end

    @property
    def saved_at_end(self) -> bool:
        """Whether the last recovery checkpoint of the fit was saved."""
        return self.outcome.saved_at_end

    @property
    def lineage(self) -> list[str]:
        """The names of this fit, the last, and of those that it goes on from."""
        return self.resume.lineage

    def dump(
        self, weights_only: bool = False, together: bool = True, lenient: bool = False
    ) -> CheckpointDict:
        """Return the checkpoint of the run as it is now; see `state.dump`."""
        return state.dump(self, weights_only, together, lenient=lenient)

    def request_pause(self) -> None:
        """Have the loop pause after this batch, to save a recovery checkpoint or to end."""
        self.agreement.pauses = True

    def request_end(self) -> None:
        """Have the fit saved and ended after this batch, as by SIGTERM."""
        self.agreement.received_sigterm = True
        self.agreement.pauses = True

    # ---- events ----

    def fire(self, name: str, *args: object) -> None:
        """Call every function that overrides the event `name`, in order."""
        for function in self.hooks[name]:
            self.metrics.hook = name
            function(*args)
        self.metrics.hook = None

    def call(self, owner: object, name: str, *args: object, **kwargs: object) -> Any:
        """Call one hook of the module or the datamodule; values that it logs count as logged there.

        A hook that was set to None is left out.
        """
        function = getattr(owner, name)
        if function is None:
            return None
        before = self.metrics.hook
        self.metrics.hook = name
        try:
            return function(*args, **kwargs)
        finally:
            self.metrics.hook = before

    # how hooks are wrapped for a profiler
    watch: Callable[[object, str, Callable[..., object]], Callable[..., object]] | None = None

    def timed(self, action: str, function: Callable[..., object]) -> Callable[..., object]:
        """Return `function` as a profiler is to see it: as it is, since there is none."""
        return function

    def stop_counting(self) -> None:
        """Leave the optimizers as they were."""
        for handle in self.counting:
            handle.remove()
        self.counting = []

    def close(self) -> None:
        """The job has ended, well or not; called last."""
        self.stop_counting()

    def mark_gradients_ready(self, output: object) -> None:
        """The gradients of the batch are there: a checkpoint that a hook saves now holds them.

        Not those of a closure, which may be called again, nor scaled ones or parts of them.

        Args:
            output: what `training_step` returned.
        """
        if not (self.calls.needs_closure or self.precision.scaler or self.strategy.shards):
            self.output = output
            self.progress.at = GRADIENTS

    def prepare_step(self, optimizer: UserOptimizer, *, has_fired: bool = False) -> None:
        """Gradients are complete: unscale them, tell who listens if none was told, clip them."""
        metrics = self.metrics
        module = self.module
        trainer = self.trainer
        before = metrics.hook
        # Before the hooks and the clipping, which look at the gradients in their true size
        if self.precision.scaler is not None:
            self.precision.scaler.unscale_(optimizer)
        if self.hooks["on_before_optimizer_step"] and not has_fired:
            if self.progress.at == GRADIENTS:
                self.progress.at = CLIPPING
            self.fire("on_before_optimizer_step", optimizer)
        if module.automatic_optimization and self.calls.clips:
            metrics.hook = "configure_gradient_clipping"
            value, algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
            module.configure_gradient_clipping(
                optimizer, gradient_clip_val=value, gradient_clip_algorithm=algorithm
            )
        metrics.hook = before

    def backward(self, loss: Any, *args: object, **kwargs: object) -> None:
        """Run the backward pass of manual optimization with its hooks."""
        hook = self.metrics.hook
        if self.precision.scaler is not None:
            loss = self.precision.scaler.scale(loss)
        prepare = getattr(self.step_module, "prepare_backward", None)
        loss = loss if prepare is None else prepare(loss)
        self.fire("on_before_backward", loss)
        self.progress.at = BACKWARD
        self.call(self.module, "backward", loss, *args, **kwargs)
        self.fire("on_after_backward")
        self.metrics.hook = hook

    def resolve_calls(self) -> None:
        """Resolve once the facts that the loop would otherwise look up at every batch."""
        module = self.module
        base = LightningModule
        self.calls = replace(
            self.calls,
            overrides_backward=is_overridden("backward", module, base),
            overrides_zero_grad=is_overridden("optimizer_zero_grad", module, base),
            overrides_batch_start=is_overridden("on_train_batch_start", module, base),
            overrides_clipping=is_overridden("configure_gradient_clipping", module, base)
            or is_overridden("clip_gradients", module, base),
            takes_batch_idx={
                step: not is_overridden(step, module, base)
                or _takes_batch_idx(getattr(module, step))
                for step in STEP_OF.values()
            },
            transfer=self._choose_transfer(),
        )
        self.renew_calls()

    def renew_calls(self) -> None:
        """Read anew the settings that may change while a fit runs, from the next epoch on."""
        calls = self.calls
        clips = calls.overrides_clipping or bool(self.trainer.gradient_clip_val)
        forward_only = self.skips_backward or not self.module.automatic_optimization
        if clips != calls.clips or forward_only != calls.forward_only:
            self.calls = replace(calls, clips=clips, forward_only=forward_only)

    def _choose_transfer(self) -> Callable[[object, int], object] | None:
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

        def transfer(batch: Batch, dataloader_idx: int) -> Batch:
            batch = self.precision.convert_input(batch)
            batch = self.call(owners[0], names[0], batch, dataloader_idx)
            batch = self.call(owners[1], names[1], batch, self.device, dataloader_idx)
            return self.call(owners[2], names[2], batch, dataloader_idx)

        return transfer

    def wrap(self) -> None:
        """Wrap the module for data parallelism, where that has not been done for its gradients.

        DDP synchronizes the gradients of those parameters that required one when it was made: one
        unfrozen since would differ from rank to rank, and one frozen since be waited for. In manual
        optimization, where `training_step` may freeze now these and now those, it is made for all
        that were ever trained.
        """
        if self.world.size == 1:
            return
        required = self._required()
        by_hand = not self.module.automatic_optimization
        if by_hand and self._wrapped_for:
            required = list(map(max, required, self._wrapped_for))
        if required == self._wrapped_for:
            return
        parameters = list(self.module.parameters())
        now = self._required()
        self.step_module = None  # its hooks go with it
        try:
            for parameter, requires_grad in zip(parameters, required, strict=True):
                parameter.requires_grad = requires_grad
            self.step_module = self.strategy.wrap(self.module, self.world)
        finally:
            for parameter, requires_grad in zip(parameters, now, strict=True):
                parameter.requires_grad = requires_grad
        self._wrapped_for = required

    def _required(self) -> list[bool]:
        return [parameter.requires_grad for parameter in self.module.parameters()]

    def check_wrapped(self) -> None:
        """Check that the gradients of the backward pass are those the module was wrapped for.

        Raises:
            ConfigError: parameters were unfrozen after its forward pass had begun, so each rank
                would keep gradients of its own.
        """
        required = self._required()
        if required == self._wrapped_for or self.strategy.shards:
            return
        names = [
            name
            for (name, _), now, before in zip(
                self.module.named_parameters(), required, self._wrapped_for, strict=True
            )
            if now and not before
        ]
        if names:
            raise ConfigError(
                f"training_step has unfrozen {', '.join(names)}, whose gradients would differ from"
                " rank to rank in this step. Unfreeze parameters before it, in on_train_batch_start"
                " or on_train_epoch_start, or after the batch, in on_train_batch_end."
            )

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

    def load(self, stage: str, in_order: bool = False) -> data.CombinedLoader:
        """Ask for the data of `stage` and make it this rank's loader.

        Args:
            stage: `train`, `val`, `test` or `predict`.
            in_order: each rank gets one consecutive piece of the data, as for prediction, whatever
                the stage.

        Raises:
            DataError: nobody gives any, or what is given cannot be read.
        """
        hook = f"{stage}_dataloader"
        trainer = self.trainer
        given = self.job.data.get(stage)
        if given is not None:
            argument = f"{stage}_dataloaders" if self.job.fn == "fit" else "dataloaders"
            origin = f"Trainer.{self.job.fn}({argument}=...)"
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
            "predict" if in_order else stage,
            self.world,
            limit=limit,
            distribute=trainer.use_distributed_sampler,
            overfit=overfits,
            origin=origin,
            uneven=self.strategy.uneven,
            elastic=self.job.rescale_plan is not None,
            seed=self.data.seed,
        )
        # ModelCheckpoint goes by the batches of validation: a rank without any is to decide as the
        # others do, or they would wait for it
        if stage != "train" and self.world.size > 1:
            ranks = self.world.all_gather_object(loader.lengths())
            loader.most = [max(lengths) for lengths in zip(*ranks, strict=False)]
        if stage in self.data.loaders:
            self.data.loaders[stage].close()
        epoch = self.progress.epoch
        before = self.resume.loader_epochs.pop(stage, epoch)
        if stage != "train" and self._is_old(before):  # this is the reload
            before = epoch
        self.data.loaders[stage] = loader
        self.data.loader_epoch[stage] = before
        return loader

    def meet(self, *, asks: bool = False) -> None:
        """Wait for all ranks, and load the training data with any that asks for it ahead of time.

        Loading waits for all ranks. So the others come here after each hook in which one rank alone
        may ask, by reading `estimated_stepping_batches`; a rank that has asked comes again.

        Args:
            asks: whether this rank needs the training data now.
        """
        while True:
            wanted = self.world.any(asks)
            if wanted:
                self.load("train")
            if asks or not wanted:
                return

    def reload_due(self, stage: str) -> bool:
        """Tell whether `reload_dataloaders_every_n_epochs` asks for new loaders of `stage`."""
        return self._is_old(self.data.loader_epoch[stage])

    def _is_old(self, epoch: int) -> bool:
        every = self.trainer.reload_dataloaders_every_n_epochs
        return bool(every) and self.progress.epoch - epoch >= every

    @property
    def validates(self) -> bool:
        """Whether this fit has a validation: a step, data and a limit above 0."""
        return (
            self.trainer.limit_val_batches != 0
            and is_overridden("validation_step", self.module, LightningModule)
            and self.has_data("val")
        )

    # ---- what was logged ----

    def log_metrics(self, metrics: Mapping[str, object], step: int | None = None) -> None:
        """Send values to the loggers.

        `epoch` is added, and the x-axis is `step`, a logged key `step`, or the batches that
        stepped.
        """
        trainer = self.trainer
        if not metrics or not trainer.loggers or not self.world.is_zero:
            return
        numbers = to_numbers(metrics)
        if step is None:
            # As in Lightning: a row at an x of the user's own gets no `epoch`
            logged_step = numbers.pop("step", None)
            if logged_step is not None:
                step = int(logged_step)
            else:
                numbers.setdefault("epoch", self.progress.epoch)
                step = self.progress.log_steps
        for logger in as_loggers(trainer.loggers):
            logger.log_metrics(metrics=numbers, step=step)
        if time.monotonic() - self.loggers_saved >= SAVE_LOGGERS_EVERY_S:
            self.save_loggers()

    def note_data(self, stage: str, batch: Batch) -> None:
        """Tell the loggers, once, which data a stage reads.

        Args:
            stage: `train`, `val` or `test`.
            batch: one of its batches; None: there is none at hand, and nothing is told yet.
        """
        if stage in self.data.noted or batch is None:
            return
        # Also if it fails below, as it would each time
        self.data.noted.add(stage)
        loggers = as_loggers(self.trainer.loggers) if self.world.is_zero else ()
        is_example = stage == "val" or (stage == "train" and self.data.example is None)
        if is_example and any(one.wants_model for one in loggers):
            self.data.example = batch
        # To identify data is to read in it for a digest: not for loggers that would not keep it
        told = [one for one in loggers if type(one).log_input is not Logger.log_input]
        if not told:
            return
        context = "validation" if stage == "val" else stage
        try:
            found = data.identify(self.data.loaders[stage].flattened, context, batch)
        except Exception as error:  # whatever a dataset may hold
            warn_once(f"MLflow is not told what data {stage} read: {error}")
            return
        for logger in told:
            logger.log_input(found)

    def save_loggers(self) -> None:
        """Let the loggers write their pending values.

        It is called before a checkpoint is written, which is not to know more than they.
        """
        self.loggers_saved = time.monotonic()
        if self.world.is_zero:
            for logger in as_loggers(self.trainer.loggers):
                logger.save()

    def settle_loggers(self) -> None:
        """Wait until all logged values would outlive this machine, before a checkpoint counts."""
        if self.world.is_zero:
            for logger in as_loggers(self.trainer.loggers):
                logger.settle(SETTLE_LOGGERS_S)

    def remember(
        self, metrics: Mapping[str, Tensor | float], progress: Progress | None = None
    ) -> None:
        """Keep epoch values for `Result.history`.

        Those of one step are one row, and rows are in the order of steps.

        Args:
            metrics: the values.
            progress: the counters when they were due, if that is not now.
        """
        if not metrics or not self.world.is_zero:
            return
        progress = progress or self.progress
        # a logged "step" or "epoch" is an x-axis for the loggers, but no place in the history
        row: Row = {
            **to_numbers(metrics),
            "epoch": progress.epoch,
            "step": progress.steps,
        }
        self.outcome.history.add(row)


def _new_name() -> str:
    """Return letters that nobody else has.

    No digits: those in the name of a checkpoint's file are its batches.
    """
    return "".join(chr(ord("a") + int(digit, 16)) for digit in uuid.uuid4().hex[:8])


def _takes_batch_idx(step: Callable[..., object] | None) -> bool:
    """Tell whether a step wants the number of the batch.

    By name, as a second argument, or through `*args`.
    """
    if step is None:
        return False
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
        raise WrongStateError(
            f"You provided multiple dataloaders, but no `dataloader_idx` argument in"
            f" `{type(module).__name__}.{step}()`. "
            f"There are {num_loaders} loaders, so {step} must tell them apart: def {step}(self,"
            " batch, batch_idx, dataloader_idx=0)."
        )
    if num_loaders == 1 and parameter is not None and parameter.default is parameter.empty:
        raise WrongStateError(
            f"You provided only a single dataloader, but have included `dataloader_idx` in"
            f" `{type(module).__name__}.{step}()`. "
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


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Context in which a module is in eval mode; afterwards it is as before.

    That is the mode of each submodule, which the next fit trains in, and the buffers, in which a
    `forward` may count its calls.
    """
    modes = submodule_modes(module)
    kept = dict(module.named_buffers(remove_duplicate=False))
    lazy = {name for name, buffer in kept.items() if is_lazy(buffer)}
    storages = {}  # not the buffers themselves: some are views of others, or of the user's tensors
    for buffer in kept.values():
        local = getattr(buffer, "_local_tensor", buffer)  # a DTensor's, under FSDP
        if not is_lazy(buffer) and local.layout == torch.strided and local.device.type != "meta":
            storage = local.untyped_storage()
            storages[storage.data_ptr()] = (storage, storage.clone())
    module.eval()
    try:
        yield
    finally:
        restore_modes(module, modes)
        for storage, before in storages.values():
            storage.copy_(before)
        for name in kept.keys() - lazy:  # `forward` may have put others in their place
            owner, _, key = name.rpartition(".")
            module.get_submodule(owner)._buffers[key] = kept[name]


def no_grad_context(run: Run) -> torch.inference_mode | torch.no_grad:
    """Return the context of an evaluation.

    Inference mode where it is wanted and possible, else no_grad.
    """
    # As in Lightning: validation within a fit is under no_grad, since inference tensors that a
    # module keeps could not be trained with, and so is all that goes over gloo or FSDP
    inference = (
        run.trainer.inference_mode
        and run.job.fn != "fit"
        and not (run.world.size > 1 and (run.strategy.shards or run.device.type == "cpu"))
    )
    return torch.inference_mode() if inference else torch.no_grad()
