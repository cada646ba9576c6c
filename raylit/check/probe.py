"""Watches a few steps of a model from within and takes notes, for `raylit.check` to judge.

What it watches must be a copy.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from raylit.core.aliases import Batch, Loaders, StepOutput
from raylit.core.callback import Callback
from raylit.data.combined import length_of
from raylit.engine.run import Run, restore_modes, submodule_modes
from raylit.runtime import rng
from raylit.runtime.batch import named_tensors, with_tensors

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import JobTrainer

MAX_STEPS = 60  # steps on one batch
MIN_STEPS = 20  # enough to time them
WATCHED_STEPS = 10  # the first of them, in which gradients are looked at; not timed
MAX_TIME_S = 60.0  # no further step after this time
LOSSES = (
    F.cross_entropy,
    F.nll_loss,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
    F.mse_loss,
    F.l1_loss,
    F.smooth_l1_loss,
    F.huber_loss,
)


@dataclass
class LossCall:
    """One call of a loss function of torch in the first training step.

    Attributes:
        function: its name.
        value: what it returned, if that is one number.
        expected: what a model that knows nothing yet gets, where that can be told.
        why: where `expected` comes from, in words.
        mistake: what is wrong with the arguments, or None.
        fix: what to do about it.
    """

    function: str
    value: float | None = None
    expected: float | None = None
    why: str = ""
    mistake: str | None = None
    fix: str = ""


class FirstStep(Callback):
    """Watches the first batch through training, the optimizers and validation; then stops the fit.

    Attributes:
        batch: a copy of the training batch as the loader gave it; None if there was none.
        stages: the steps that ran.
        gradients: for every parameter that got a gradient, whether any of it was other than 0.
        without_optimizer: parameters that require a gradient and are in no optimizer.
        not_finite: where NaN or infinity was found, in the order it came up: (what, where).
        loss: what `training_step` returned as its loss, or None.
        losses: calls of loss functions.
        mixing: what is known of samples that influence each other, by module path: (whether they
            do, or None if it cannot be told; in words).
        inputs: the names of the inputs of a batch that were looked at, if it has several, and
            whether the loss depends on them in a way that can be learned from.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, bool] = {}
        self.batch: Batch = None
        self.stages: list[str] = []
        self.gradients: dict[str, bool] = {}
        self.without_optimizer: list[str] = []
        self.not_finite: list[tuple[str, str]] = []
        self.loss: float | None = None
        self.losses: list[LossCall] = []
        self.mixing: dict[str, tuple[bool | None, str]] = {}
        self._calls: dict[
            str, tuple[Any, Any]
        ] = {}  # the arguments of modules that were not called within another's call
        self._depth = 0

    def watch(self, module: LightningModule) -> None:
        """Look at the loss functions that `training_step` calls and at the loss it returns.

        Call it before the fit.
        """
        step: Callable[..., Any] = module.training_step

        @functools.wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with _LossCalls(self.losses):
                output = step(*args, **kwargs)
            loss = output.get("loss") if isinstance(output, dict) else output
            self.loss = (
                float(loss.detach()) if isinstance(loss, Tensor) and loss.numel() == 1 else None
            )
            return output

        module.training_step = watched  # type: ignore[method-assign]

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
        note_gradients(pl_module, self.gradients, self.not_finite)
        for name, child in pl_module.named_modules():
            if not isinstance(child, torch.jit.ScriptModule):
                child.register_forward_pre_hook(self._before_call(name), with_kwargs=True)
                child.register_forward_hook(self._after_call(name), with_kwargs=True)

    def _keeping(self, transfer: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
        def keep(batch: Batch, dataloader_idx: int) -> Any:
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
        if self.loss is not None and not math.isfinite(self.loss):
            self.not_finite.append(("the loss", ""))
        self._check_weights(pl_module)
        calls = self._calls
        self._calls = {}
        number = _num_samples(run.data.loaders["train"].flattened[0], batch)
        modes = submodule_modes(pl_module)
        pl_module.eval()
        for name, (args, kwargs) in calls.items():
            with run.precision.context():
                self.mixing[name] = mixes_samples(
                    pl_module.get_submodule(name), args, kwargs, number
                )
        if number is not None and pl_module.automatic_optimization:
            with run.precision.context():
                self.inputs = inputs_that_count(pl_module, batch, batch_idx, number)
        restore_modes(pl_module, modes)
        trainer.should_stop = True

    def on_validation_batch_end(
        self, trainer: JobTrainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        self.stages.append("validation_step")
        trainer.should_stop = True

    def _before_call(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            module_is_outermost = self._depth == 0
            self._depth = self._depth + 1
            if (
                module_is_outermost
                and module.training
                and torch.is_grad_enabled()
                and not self.stages
                and name not in self._calls
            ):
                self._calls[name] = tree_map(
                    lambda item: item.detach().clone() if isinstance(item, Tensor) else item,
                    (args, kwargs),
                )
            self._check("the input of", name, (args, kwargs))

        return hook

    def _after_call(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._depth -= 1
            self._check("the output of", name, output)

        return hook

    def _check(self, what: str, where: str, values: Any) -> None:
        if (what, where) not in self.not_finite and any(
            not is_finite(leaf) for leaf in tree_leaves(values)
        ):
            self.not_finite.append((what, where))

    def _check_weights(self, module: nn.Module) -> None:
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            self._check("the weights", name, tensor)


class OneBatch(Callback):
    """Trains on one batch until the loss is a small fraction of the first, or for `MAX_STEPS`.

    Attributes:
        losses: the loss before each step; empty if `training_step` returns none.
        gradients: as in `FirstStep`, of the first steps.
        time_per_step_s: mean time of the steps that were not watched, or None.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, bool] = {}
        self.time_per_step_s: float | None = None
        self._pending: list[Tensor] = []
        self._hooks: list[Any] = []
        self._started = self._timed_from = time.perf_counter()

    def on_train_start(self, trainer: JobTrainer, pl_module: LightningModule) -> None:
        run = trainer.run
        assert isinstance(run, Run)
        self._hooks = note_gradients(pl_module, self.gradients, [])
        self._started = time.perf_counter()
        if not pl_module.automatic_optimization:
            return
        run.schedulers = []  # a warm-up would last longer than these steps
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
            self._timed_from = now
        else:
            self.time_per_step_s = (now - self._timed_from) / (done - WATCHED_STEPS)
        out_of_time = now - self._started > MAX_TIME_S
        trainer.should_stop = (
            done >= MAX_STEPS or out_of_time or (done >= MIN_STEPS and has_fallen(self.losses))
        )


class Repeated:
    """One batch, `MAX_STEPS` times; each time a copy, since a step may write into it."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return MAX_STEPS

    def __iter__(self) -> Iterator[Any]:
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
    return bool(value.detach().isfinite().all())


def note_gradients(
    module: nn.Module, seen: dict[str, bool], not_finite: list[tuple[str, str]]
) -> list[Any]:
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


def inputs_that_count(
    module: LightningModule, batch: Batch, batch_idx: int, num_samples: int
) -> dict[str, bool]:
    """Tell for each of several inputs of a batch whether the loss learns from it.

    From floating-point numbers, whether a gradient reaches them; from others, whether the loss
    changes when all samples get those of the first. Numbers that a sample has one of and that are no
    floating-point ones are labels or ids, and left out.

    Args:
        module: in eval mode.
        batch: as `training_step` gets it.
        batch_idx: its number.
        num_samples: in the batch.

    Returns:
        Nothing if there are fewer than two, or it cannot be told.
    """
    tensors = named_tensors(batch)
    wanted = [
        name
        for name, one in tensors.items()
        if one.ndim > 0
        and one.size(0) == num_samples
        and one.dtype is not torch.bool
        and (one.is_floating_point() or one.ndim > 1)
    ]
    if len(wanted) < 2:
        return {}
    step = getattr(module.training_step, "__wrapped__", module.training_step)
    takes_index = len(inspect.signature(step).parameters) > 1

    def loss_of(given: dict[str, Tensor]) -> Tensor | None:
        with rng.isolated():
            torch.manual_seed(0)  # the same noise each time
            args = (with_tensors(batch, given.values()), *((batch_idx,) if takes_index else ()))
            output = step(*args)
        loss = output.get("loss") if isinstance(output, dict) else output
        return loss if isinstance(loss, Tensor) and loss.numel() == 1 else None

    module.attach_log(None)
    leaves = {
        name: one.detach().clone().requires_grad_(one.is_floating_point() and name in wanted)
        for name, one in tensors.items()
    }
    floats = [name for name in wanted if leaves[name].requires_grad]
    try:
        with torch.enable_grad():
            # copies, which may be written to in place
            loss = loss_of({name: one.clone() for name, one in leaves.items()})
        if loss is None or not loss.requires_grad or not is_finite(loss):
            return {}
        found = torch.autograd.grad(loss, [leaves[name] for name in floats], allow_unused=True)
        counts = {
            name: one is not None and bool(one.any())
            for name, one in zip(floats, found, strict=True)
        }
        for name in wanted:
            # not shuffled, which a mean over the samples does not see if it is all they have
            first = tensors[name][:1].expand_as(tensors[name]).clone()
            if name in counts or torch.equal(first, tensors[name]):
                continue
            with torch.no_grad():
                other = loss_of({**tensors, name: first})
            counts[name] = other is None or bool(other != loss.detach())
    except Exception:  # whatever a step in eval mode raises: it was made for train mode
        return {}
    return counts


def mixes_samples(
    module: nn.Module, args: object, kwargs: object, num_samples: int | None
) -> tuple[bool | None, str]:
    """Tell whether the output of a sample depends on the input of another, by its gradient.

    Args:
        module: in eval mode, in which batch norm takes nothing from the batch.
        args: its arguments.
        kwargs: its keyword arguments.
        num_samples: samples in the batch; None if that is not known.

    Returns:
        Whether it does, None if that cannot be told; and which samples, or why it cannot.
    """
    if num_samples is None or num_samples < 2:
        return None, (
            "the number of samples is not known"
            if num_samples is None
            else "the batch has one sample"
        )
    flat, spec = tree_flatten((args, kwargs))
    leaves = [
        item.clone().requires_grad_() if _has_rows(item, num_samples) else item for item in flat
    ]
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not inputs:
        return None, "no input is a floating-point tensor with a row for each sample"
    try:
        with torch.enable_grad():
            copied = [
                leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves
            ]  # which may be written to in place
            positional, named = tree_unflatten(copied, spec)
            outputs = [
                item
                for item in tree_leaves(module(*positional, **named))
                if _has_rows(item, num_samples) and item.requires_grad
            ]
    except Exception as error:
        return (
            None,
            (
                f"it could not be called in eval mode ({type(error).__name__}:"
                f" {str(error).splitlines()[0] if str(error) else ''})"
            ),
        )
    if not outputs:
        return None, "no output has a row for each sample"
    for row in sorted({0, num_samples // 2, num_samples - 1}):
        value = torch.stack(
            [(output[row] * torch.randn_like(output[row])).sum().float() for output in outputs]
        ).sum()
        for gradient in torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True):
            if gradient is None:
                continue
            if not is_finite(gradient):
                return None, "the gradient is not finite"
            # an input may be one number a sample, as the columns of a table are
            of_others = gradient.reshape(num_samples, -1).any(1)
            of_others[row] = False
            if of_others.any():
                return True, f"output {row} depends on input {int(of_others.nonzero()[0])}"
    return False, ""


def _has_rows(value: object, number: int) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.ndim > 0
        and value.size(0) == number
    )


def _num_samples(loader: Loaders, batch: Batch) -> int | None:
    """Return how many samples a batch holds, None if the loader's batch size disagrees."""
    size = next(
        (tensor.size(0) for tensor in named_tensors(batch).values() if tensor.ndim),
        None,
    )
    wanted = getattr(loader, "batch_size", None)
    if not isinstance(wanted, int):
        return size
    return size if size == min(wanted, length_of(getattr(loader, "dataset", None))) else None


def _now(trainer: JobTrainer) -> float:
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize(trainer.world.device)
    return time.perf_counter()


class _LossCalls(TorchFunctionMode):
    """Notes calls of loss functions, for a `with` block."""

    def __init__(self, calls: list[LossCall]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Any, types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        value = func(*args, **(kwargs or {}))
        if func in LOSSES:
            given = _argument(0, "input", args, kwargs)
            target = _argument(1, "target", args, kwargs)
            self.calls.append(
                _describe(
                    func.__name__, given.detach().float(), target.detach(), value, kwargs or {}
                )
            )
        return value


def _argument(position: int, name: str, args: Any, kwargs: Any) -> Tensor:
    found: Tensor = args[position] if len(args) > position else kwargs[name]
    return found


def _describe(
    function: str, given: Tensor, target: Tensor, value: Any, kwargs: dict[str, object]
) -> LossCall:
    """Judge the call of a loss function with `given`, the output of the model, and `target`."""
    is_mean = (
        isinstance(value, Tensor) and value.ndim == 0 and kwargs.get("reduction", "mean") == "mean"
    )
    call = LossCall(function, float(value.detach()) if is_mean else None)
    classes = given.shape[:2][-1] if given.ndim else 1  # of one sample the first dimension
    if function in ("cross_entropy", "nll_loss"):
        call.expected = math.log(classes)
        call.why = f"log {classes} for {classes} classes"
        if function == "nll_loss" and bool((given > 0).any()):
            call.mistake = "nll_loss gets numbers above 0, which are no log-probabilities"
            call.fix = "use cross_entropy"
        elif (
            function == "cross_entropy"
            and given.ndim > 1
            and bool((given >= 0).all())
            and bool(((given.sum(1) - 1).abs() < 1e-3).all())
        ):
            call.mistake = "cross_entropy gets probabilities, but applies log_softmax itself"
            call.fix = "leave softmax out of the model, or use nll_loss on their logarithm"
    elif function.startswith("binary"):
        if kwargs.get("weight") is None and kwargs.get("pos_weight") is None:
            call.expected = math.log(2)
            call.why = "log 2 for yes or no"
        if (
            function.endswith("logits")
            and given.numel() >= 8
            and bool(((given >= 0) & (given <= 1)).all())
        ):
            call.mistake = (
                "binary_cross_entropy_with_logits gets numbers from 0 to 1 only, but applies a"
                " sigmoid itself"
            )
            call.fix = "leave the sigmoid out of the model"
    else:
        target = target.float()
        variance = float((target - target.mean()).square().mean())
        if function == "mse_loss" and variance > 0:
            call.expected = variance
            call.why = "the variance of the targets in the batch"
        if given.shape != target.shape:
            call.mistake = (
                f"{function} compares shapes {list(given.shape)} and {list(target.shape)}: every"
                " prediction with several targets"
            )
            call.fix = "give both the same shape, for instance with squeeze(1) or unsqueeze(1)"
    return call
