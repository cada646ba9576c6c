"""Watches a few steps of a model from within and takes notes, for `judge.py`.

The watched model must be a copy.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from raylit.check.calls import LossCall, ObservedCalls
from raylit.check.memory import Memory
from raylit.check.samples import (
    call_step,
    fewer_samples,
    inputs_that_count,
    loss_of,
    mixes_samples,
    num_samples,
)
from raylit.core.callback import Callback
from raylit.core.hooks import is_overridden
from raylit.core.module import LightningModule
from raylit.core.optimizer import LRSchedulerConfig
from raylit.engine.run import Run, restore_modes, submodule_modes
from raylit.runtime.aliases import Batch, StepOutput, UserOptimizer
from raylit.runtime.batch import named_tensors

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

    from raylit.core.trainer import JobTrainer

MAX_STEPS = 60  # steps on one batch
MIN_STEPS = 20  # enough to time them
NEVER = 10**9  # batches or epochs, more than any of these fits has
WATCHED_STEPS = 10  # the first of them, in which gradients are looked at; not timed
MAX_TIME_S = 60.0  # no further step after this time
SEVERAL = 16  # different batches to look at
SEVERAL_TIME_S = 10.0
SEEDS = range(5)
MODES = (nn.modules.dropout._DropoutNd, nn.modules.batchnorm._BatchNorm)  # differ in eval mode


class Notes:
    """Notes of several steps of one copy.

    Attributes:
        gradients: for every parameter that got a gradient, whether any of it was other than 0.
        trained: names of the parameters that a step uses where gradients are recorded.
        used: names of all that a step or validation uses.
        losses: calls of loss functions, of the last `training_step` that was watched.
        validation_losses: likewise of the last `validation_step`.
        truncated, differences, random, strangers: as in `ObservedCalls`.
    """

    def __init__(self) -> None:
        self.gradients: dict[str, bool] = {}
        self.trained: set[str] = set()
        self.used: set[str] = set()
        self.losses: list[LossCall] = []
        self.validation_losses: list[LossCall] = []
        self.truncated: list[str] = []
        self.differences: list[tuple[list[int], list[int]]] = []
        self.random: list[str] = []
        self.strangers: list[list[int]] = []

    def take(self, calls: ObservedCalls, step: str) -> None:
        """Add the calls of one step to these notes; `step` is the name of its method."""
        self.trained |= calls.trained
        self.used |= calls.used
        if step == "training_step":
            self.losses = calls.losses or self.losses
        else:
            self.validation_losses = calls.losses or self.validation_losses
        for name in ("truncated", "differences", "random", "strangers"):
            mine = getattr(self, name)
            mine.extend(one for one in getattr(calls, name) if one not in mine)


def watch(
    module: LightningModule, notes: Notes, is_due: Callable[[int], bool] = lambda step: True
) -> None:
    """Take notes of the calls in `training_step` and `validation_step`.

    Args:
        module: a copy; call this before its fit.
        notes: where to.
        is_due: tells of the number of a batch whether it is looked at.
    """
    is_watched = False  # by the step that calls another, as a validation_step its training_step

    def watched(name: str) -> Callable[..., object]:
        step = getattr(module, name)

        @functools.wraps(step)
        def call(*args: Any, **kwargs: Any) -> object:
            nonlocal is_watched
            batch = kwargs.get("batch", args[0] if args else None)
            number = kwargs.get("batch_idx", args[1] if len(args) > 1 else 0)
            if is_watched or not is_due(number):
                return step(*args, **kwargs)
            calls = ObservedCalls(module, named_tensors(batch))
            is_watched = True
            try:
                with calls:
                    return step(*args, **kwargs)
            finally:
                is_watched = False
                notes.take(calls, name)

        return call

    for name in ("training_step", "validation_step"):
        if is_overridden(name, module, LightningModule):
            setattr(module, name, watched(name))


class FirstStep(Callback):
    """Watches the first batch through training, the optimizers and validation; then stops the fit.

    Attributes:
        batch: a copy of the training batch as the loader gave it; None if there was none.
        stages: the steps that ran.
        notes: what it called.
        without_optimizer: parameters that require a gradient and are in no optimizer.
        not_finite: where NaN or infinity was found, in the order it came up: (what, where).
        loss: what `training_step` returned as its loss, or None.
        resting: dropouts and batch norms that are in eval mode in `training_step`.
        mixing: what is known of samples that influence each other, by module path: (whether they
            do, or None if it cannot be told; in words).
        inputs: the names of the inputs of a batch that were looked at, and whether the loss depends
            on them in a way that can be learned from.
        batches_itself: whether the data set makes the batches, not the loader.
        logged: the names of what was logged.
    """

    def __init__(self) -> None:
        self.logged: set[str] = set()
        self.inputs: dict[str, bool] = {}
        self.batch: Batch = None
        self.stages: list[str] = []
        self.notes = Notes()
        self.batches_itself = False
        self.without_optimizer: list[str] = []
        self.not_finite: list[tuple[str, str]] = []
        self.loss: float | None = None
        self.resting: list[str] = []
        self.mixing: dict[str, tuple[bool | None, str]] = {}
        # The arguments of modules that were not called within another's call
        self._calls: dict[str, tuple[object, object]] = {}
        self._depth = 0
        self._captures = True
        self._modes: dict[str, bool] = {}

    def on_train_start(self, trainer: JobTrainer, pl_module: LightningModule) -> None:
        run = trainer.run
        assert isinstance(run, Run)
        if run.calls.transfer is not None:
            run.calls = replace(run.calls, transfer=self._keeping(run.calls.transfer))
        optimized = {
            id(one)
            for optimizer in run.optimizers
            for group in optimizer.param_groups
            for one in group["params"]
        }
        self.without_optimizer = [
            name
            for name, one in pl_module.named_parameters()
            if one.requires_grad and id(one) not in optimized
        ]
        self._check_weights(pl_module)
        note_gradients(pl_module, self.notes.gradients, self.not_finite)
        for name, child in pl_module.named_modules():
            if not isinstance(child, torch.jit.ScriptModule):
                child.register_forward_pre_hook(self._before_call(name), with_kwargs=True)
                child.register_forward_hook(self._after_call(name), with_kwargs=True)

    def _keeping(
        self, transfer: Callable[[object, int], object]
    ) -> Callable[[object, int], object]:
        def keep(batch: Batch, dataloader_idx: int) -> object:
            self._keep(batch)
            return transfer(batch, dataloader_idx)

        return keep

    def _keep(self, batch: Batch) -> None:
        if self.batch is None:
            self.batch = copy.deepcopy(batch)

    def on_train_batch_start(
        self, trainer: JobTrainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._keep(batch)
        self._check("the batch", "", batch)

    def on_train_batch_end(
        self,
        trainer: JobTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        run = trainer.run
        assert isinstance(run, Run)
        self.stages.append("training_step")
        loss = loss_of(outputs)
        self.loss = float(loss.detach()) if loss is not None else None
        if self.loss is not None and not math.isfinite(self.loss):
            self.not_finite.append(("the loss", ""))
        self._check_weights(pl_module)
        self._captures = False
        if self._modes and not any(self._modes.values()):
            self.resting = list(self._modes)
        loader = run.data.loaders["train"].flattened[0]
        self.batches_itself = getattr(loader, "batch_size", 0) is None
        number = num_samples(loader, batch)
        modes = submodule_modes(pl_module)
        pl_module.eval()
        calls = ObservedCalls(pl_module, named_tensors(batch))
        with run.precision.context(), calls:
            self._look_at_samples(pl_module, batch, batch_idx, number)
        self.notes.random = calls.random
        pl_module.attach_log(run.metrics)
        restore_modes(pl_module, modes)
        trainer.should_stop = True

    def _look_at_samples(
        self, module: LightningModule, batch: Batch, batch_idx: int, number: int | None
    ) -> None:
        if number is not None and number > 1 and module.automatic_optimization:
            smaller, fewer = fewer_samples(batch, number)
            if fewer != number and self._recaptured(module, smaller, batch_idx):
                batch = smaller
                number = fewer
        for name, (args, kwargs) in self._calls.items():
            self.mixing[name] = mixes_samples(module.get_submodule(name), args, kwargs, number)
        if number is not None and module.automatic_optimization:
            self.inputs = inputs_that_count(module, batch, batch_idx, number)

    def _recaptured(self, module: LightningModule, batch: Batch, batch_idx: int) -> bool:
        """Take the arguments of modules from a step with fewer samples, if it works with those."""
        before = self._calls
        self._calls = {}
        self._captures = True
        try:
            call_step(module, copy.deepcopy(batch), batch_idx)
        except Exception:  # whatever a step raises that wants full batches, or train mode
            self._calls = before
            return False
        finally:
            self._captures = False
            self._depth = 0
        return True

    def on_validation_batch_end(
        self, trainer: JobTrainer, pl_module: LightningModule, *args: object, **kwargs: object
    ) -> None:
        self.stages.append("validation_step")
        trainer.should_stop = True

    def on_train_end(self, trainer: JobTrainer, pl_module: LightningModule) -> None:
        self.logged = set(trainer.callback_metrics)

    def _before_call(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, kwargs: object) -> None:
            module_is_outermost = self._depth == 0
            self._depth = self._depth + 1
            if self._captures and isinstance(module, MODES) and _can_be_trained(module):
                self._modes.setdefault(name, module.training)
            if (
                module_is_outermost
                and self._captures
                and torch.is_grad_enabled()
                and name not in self._calls
            ):
                self._calls[name] = tree_map(
                    lambda item: item.detach().clone() if isinstance(item, Tensor) else item,
                    (args, kwargs),
                )
            self._check("the input of", name, (args, kwargs))

        return hook

    def _after_call(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, kwargs: object, output: object) -> None:
            self._depth -= 1
            self._check("the output of", name, output)

        return hook

    def _check(self, what: str, where: str, values: object) -> None:
        if (what, where) not in self.not_finite and any(
            not is_finite(leaf) for leaf in tree_leaves(values)
        ):
            self.not_finite.append((what, where))

    def _check_weights(self, module: nn.Module) -> None:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            self._check("the weights", name, tensor)


class SeveralBatches(Callback):
    """Trains on a few different batches, after one of validation, as a fit would.

    Args:
        last_epoch: number of the fit's last, as far as that is known.
        logged: names that the module is known to log, in training or validation.

    Attributes:
        notes: what the steps called.
        num_batches: how many it has seen.
        has_all: whether those were all of an epoch.
        not_finite: numbers of the batches whose loss was NaN or infinite.
        changed: names of the parameters that have changed.
        looked_ahead: whether steps of later epochs could be taken, if there was a need.
        train_bytes: the most that was held at once in a step; None before there was one.
        val_bytes: likewise in validation, with the optimizers' state.
    """

    def __init__(self, last_epoch: int, logged: set[str]) -> None:
        self.notes = Notes()
        self._last_epoch = last_epoch
        self._logged = logged
        self.num_batches = 0
        self.has_all = False
        self.not_finite: list[int] = []
        self.changed: set[str] = set()
        self.looked_ahead = True
        self.train_bytes: int | None = None
        self.val_bytes: int | None = None
        self._memory: Memory | None = None
        self._before: dict[str, tuple[float, float]] = {}
        self._val_extra = 0
        self._last: tuple[Batch, int] | None = None
        self._started = time.perf_counter()

    def setup(self, trainer: JobTrainer, pl_module: LightningModule, stage: str) -> None:
        self._memory = None

    def _measure(self, trainer: JobTrainer, module: LightningModule, batch: Batch) -> Memory:
        tensors = named_tensors(batch).values()
        if self._memory is None:
            held = [*module.parameters(), *module.buffers(), *tensors]
            self._memory = Memory(trainer.world.device, held)
        self._memory.begin(tensors)
        return self._memory

    def on_validation_batch_start(
        self,
        trainer: JobTrainer,
        pl_module: LightningModule,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._measure(trainer, pl_module, batch)

    def on_validation_batch_end(
        self,
        trainer: JobTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._memory is not None
        self._memory.end()
        held = sum(_num_bytes(one) for one in [*pl_module.parameters(), *pl_module.buffers()])
        self._val_extra = max(self._val_extra, self._memory.peak_bytes - held)

    def on_train_start(self, trainer: JobTrainer, pl_module: LightningModule) -> None:
        for config in trainer.lr_scheduler_configs:
            # Without validation there is no value of what is logged in it
            config.strict = config.strict and config.monitor not in self._logged
        note_gradients(pl_module, self.notes.gradients, [])
        self._before = prints_of(pl_module)
        self._started = time.perf_counter()

    def on_train_batch_start(
        self, trainer: JobTrainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx < 2:  # in the second there is what optimizers keep
            self._measure(trainer, pl_module, batch)

    def on_train_batch_end(
        self,
        trainer: JobTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        self.num_batches += 1
        if batch_idx < 2:
            assert self._memory is not None
            self._memory.end()
            self.train_bytes = max(self.train_bytes or 0, self._memory.peak_bytes)
            self._note_validation(trainer, pl_module)
        loss = loss_of(outputs)
        if loss is not None and not bool(loss.isfinite()):
            self.not_finite.append(batch_idx)
        self._last = batch, batch_idx
        self.has_all = self.num_batches >= trainer.num_training_batches
        out_of_time = time.perf_counter() - self._started > SEVERAL_TIME_S
        if self.has_all or self.num_batches >= SEVERAL or out_of_time:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: JobTrainer, pl_module: LightningModule) -> None:
        if not trainer.should_stop:  # the data had no length, and has ended
            self.has_all = True
            trainer.should_stop = True

    def _look_ahead(
        self, trainer: JobTrainer, module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Take the step of later epochs, if there are parameters that get no gradient so far.

        Some are learned in every other epoch, or when others have been.
        """
        run = trainer.run
        assert isinstance(run, Run)
        wanted = [name for name, one in module.named_parameters() if one.requires_grad]
        if all(name in self.notes.gradients for name in wanted):
            return
        progress = trainer.progress
        here = progress.epoch, progress.steps
        try:
            for epoch in sorted({1, max(self._last_epoch, 1)}):
                progress.epoch = epoch
                progress.steps = epoch * progress.steps
                calls = ObservedCalls(module, named_tensors(batch))
                with run.precision.context(), calls:
                    loss = loss_of(call_step(module, copy.deepcopy(batch), batch_idx))
                if module.automatic_optimization and loss is not None and loss.requires_grad:
                    loss.backward()
                self.notes.take(calls, "training_step")
        except Exception:
            self.looked_ahead = False  # a step out of turn may fail, which means nothing
        finally:
            progress.epoch, progress.steps = here
            module.attach_log(run.metrics)

    def _note_validation(self, trainer: JobTrainer, module: LightningModule) -> None:
        run = trainer.run
        assert isinstance(run, Run)
        held = [*module.parameters(), *module.buffers()]
        held += [one.grad for one in module.parameters() if one.grad is not None]
        held += [
            leaf
            for optimizer in run.optimizers
            for leaf in tree_leaves(list(optimizer.state.values()))
            if isinstance(leaf, Tensor)
        ]
        if self._val_extra:
            self.val_bytes = sum(map(_num_bytes, held)) + self._val_extra

    def on_train_end(self, trainer: JobTrainer, pl_module: LightningModule) -> None:
        after = prints_of(pl_module)
        self.changed = {name for name, one in after.items() if one != self._before.get(name)}
        if self._last is not None:
            self._look_ahead(trainer, pl_module, *self._last)

    def on_exception(
        self, trainer: JobTrainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self._memory is not None:
            self._memory.end()


class Uncleared:
    """Counts the steps of optimizers before which no gradient of theirs was cleared.

    Args:
        module: whose parameters they are.
        optimizers: those of torch.

    Attributes:
        num_steps: of all optimizers.
        num_uncleared: of those, with what steps before had left.
    """

    def __init__(self, module: nn.Module, optimizers: list[UserOptimizer]) -> None:
        self.num_steps = 0
        self.num_uncleared = 0
        self._cleared: set[int] = set()
        self._added: set[int] = set()
        self._stepped: set[int] = set()
        self._hooks = [
            one.register_hook(self._before(one)) for one in module.parameters() if one.requires_grad
        ]
        self._hooks += [one.register_step_pre_hook(self._step) for one in optimizers]

    def _before(self, parameter: Tensor) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:  # is about to be added
            self._added.add(id(parameter))
            if parameter.grad is None or not bool(parameter.grad.any()):
                self._cleared.add(id(parameter))

        return note

    def _step(self, optimizer: UserOptimizer, args: object, kwargs: object) -> None:
        self.num_steps += 1
        own = {id(one) for group in optimizer.param_groups for one in group["params"]}
        has_added = own & self._added
        if has_added and id(optimizer) in self._stepped and not own & self._cleared:
            self.num_uncleared += 1
        self._stepped.add(id(optimizer))
        self._cleared -= own
        self._added -= own

    def remove(self) -> None:
        """Look no more."""
        for hook in self._hooks:
            hook.remove()


class OneBatch(Callback):
    """Trains on one batch until the loss is a small fraction of the first, or for `MAX_STEPS`.

    Attributes:
        losses: the loss before each step; empty if `training_step` returns none.
        notes: of steps now and then.
        gradients: as in `Notes`, of the first steps.
        changed: names of the parameters that have changed.
        uncleared: whether gradients were cleared between the first steps.
        before, after: the loss before the first and after the last step, with the same random
            numbers each, for each of some seeds; empty in manual optimization.
        schedulers: when they are stepped in a fit; here they never are.
        time_per_step_s: mean time of the steps that were not watched, or None.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.notes = Notes()
        self.gradients: dict[str, bool] = {}
        self.changed: set[str] = set()
        self.uncleared: Uncleared | None = None
        self.before: list[float] = []
        self.after: list[float] = []
        self.schedulers: list[LRSchedulerConfig] = []
        self.time_per_step_s: float | None = None
        self._pending: list[Tensor] = []
        self._hooks: list[RemovableHandle] = []
        self._prints: dict[str, tuple[float, float]] = {}
        self._batch: Batch = None
        self._started = self._timed_from = time.perf_counter()

    def on_train_start(self, trainer: JobTrainer, pl_module: LightningModule) -> None:
        run = trainer.run
        assert isinstance(run, Run)
        self._prints = prints_of(pl_module)
        self._started = time.perf_counter()
        self._hooks = note_gradients(pl_module, self.gradients, [])
        self.uncleared = Uncleared(pl_module, run.optimizers)
        if not pl_module.automatic_optimization:
            return
        self.schedulers = run.schedulers
        # A warm-up would last longer than these steps; but a step may read its schedulers
        run.schedulers = [replace(one, frequency=NEVER) for one in run.schedulers]
        for group in (group for optimizer in run.optimizers for group in optimizer.param_groups):
            if "initial_lr" in group:
                group["lr"] = max(group["initial_lr"], group.get("max_lr", 0.0))

    def on_train_batch_end(
        self,
        trainer: JobTrainer,
        pl_module: LightningModule,
        outputs: StepOutput,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        done = batch_idx + 1
        if "loss" in outputs:
            self._pending.append(outputs["loss"])
        if done % WATCHED_STEPS != 0:
            return
        self.losses.extend(float(loss) for loss in self._pending)
        self._pending = []
        now = _now(trainer)
        if done == WATCHED_STEPS:
            for hook in self._hooks:
                hook.remove()
            assert self.uncleared is not None
            self.uncleared.remove()
            self._timed_from = now
        else:
            self.time_per_step_s = (now - self._timed_from) / (done - WATCHED_STEPS)
        out_of_time = now - self._started > MAX_TIME_S
        trainer.should_stop = (
            done >= MAX_STEPS or out_of_time or (done >= MIN_STEPS and has_fallen(self.losses))
        )

    def on_train_batch_start(
        self, trainer: JobTrainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx == 0 and pl_module.automatic_optimization:
            self._batch = copy.deepcopy(batch)
            self.before = self._losses(trainer, pl_module)
            self._started = time.perf_counter()

    def on_train_end(self, trainer: JobTrainer, pl_module: LightningModule) -> None:
        after = prints_of(pl_module)
        self.changed = {name for name, one in after.items() if one != self._prints.get(name)}
        if self.before:
            self.after = self._losses(trainer, pl_module)

    def _losses(self, trainer: JobTrainer, module: LightningModule) -> list[float]:
        """Return the loss on the batch for each of the seeds, without learning from it."""
        run = trainer.run
        assert isinstance(run, Run)
        found = list[float]()
        with run.precision.context():
            for seed in SEEDS:
                output = call_step(module, copy.deepcopy(self._batch), 0, seed)
                loss = loss_of(output)
                if loss is not None:
                    found.append(float(loss.detach()))
        module.attach_log(run.metrics)
        return found


class Repeated:
    """One batch, `MAX_STEPS` times; each time a copy, since a step may write into it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return MAX_STEPS

    def __iter__(self) -> Iterator[Batch]:
        return (copy.deepcopy(self.batch) for _ in range(MAX_STEPS))


def has_fallen(losses: list[float]) -> bool:
    """Tell whether the last loss is a small fraction of the first.

    Of one that can be negative, whether it fell by much.
    """
    if not losses or not all(map(math.isfinite, losses)):
        return False
    first = losses[0]
    last = losses[-1]
    return last <= 0.1 * first if min(losses) >= 0 else last < first - max(0.9 * abs(first), 0.1)


def still_falls(losses: list[float]) -> bool:
    """Tell whether the loss was halved and was falling when the steps ended."""
    if len(losses) < 20 or not all(map(math.isfinite, losses)) or min(losses) < 0:
        return False
    return sum(losses[-10:]) < 0.9 * sum(losses[-20:-10]) and losses[-1] <= 0.5 * losses[0]


def is_finite(value: object) -> bool:
    """Tell whether a value is anything but a tensor with NaN or infinity in it."""
    if (
        not isinstance(value, Tensor)
        or not (value.is_floating_point() or value.is_complex())
        or value.is_sparse
    ):
        return True
    try:
        return bool(value.detach().isfinite().all())
    except RuntimeError:  # within vmap a tensor has no numbers that can be looked at
        return True


def note_gradients(
    module: nn.Module, seen: dict[str, bool], not_finite: list[tuple[str, str]]
) -> list[RemovableHandle]:
    """Note in `seen` which parameters get a gradient, and whether any of it is other than 0.

    Returns the hooks that do it.
    """

    def hook(name: str) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            values = gradient.coalesce().values() if gradient.is_sparse else gradient
            seen[name] = seen.get(name, False) or bool(values.any())
            if not is_finite(values) and ("the gradient of", name) not in not_finite:
                not_finite.append(("the gradient of", name))

        return note

    return [
        one.register_hook(hook(name))
        for name, one in module.named_parameters()
        if one.requires_grad
    ]


def prints_of(module: nn.Module) -> dict[str, tuple[float, float]]:
    """Return two numbers of each parameter by which a change is seen, without a copy of it."""
    found = dict[str, tuple[float, float]]()
    for name, parameter in module.named_parameters():
        sizes = parameter.detach().abs().double()
        found[name] = (float(sizes.sum()), float(sizes.square().sum()))
    return found


def _can_be_trained(module: nn.Module) -> bool:
    """Tell whether a dropout drops anything, and whether a batch norm is not frozen."""
    parameters = list(module.parameters(recurse=False))
    return getattr(module, "p", 1.0) > 0 and (
        not parameters or any(one.requires_grad for one in parameters)
    )


def _num_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes() if tensor.layout is torch.strided else 0


def _now(trainer: JobTrainer) -> float:
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize(trainer.world.device)
    return time.perf_counter()
