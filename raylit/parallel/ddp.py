"""Data parallelism by torch's DistributedDataParallel.

Every rank holds the model, gradients are averaged in buckets during backward.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raylit.errors import ConfigError, did_you_mean
from raylit.parallel.strategy import ParallelStrategy, Uneven, check_start, own_buffers
from raylit.runtime.aliases import StateDict, StepOutput

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket

    from raylit.core.module import LightningModule
    from raylit.parallel.world import World

COMM_HOOKS = ("fp16", "bf16", "powersgd")
SHOWN = 3  # names in an error


class TrainingStep(nn.Module):
    """Makes `training_step` a forward pass: DDP synchronizes its own forward alone."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: object, **kwargs: object) -> StepOutput:
        """Call the module's `training_step`."""
        return self.module.training_step(*args, **kwargs)


class LossPassing(nn.Module):
    """Gives back the loss it is given.

    Around it, DDP synchronizes the gradients of the next backward pass from the loss, whoever calls
    that.
    """

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, loss: Tensor | None) -> Tensor | None:
        """Return `loss`."""
        return loss


class StepByHand(nn.Module):
    """Calls a `training_step` that runs backward by itself, perhaps several times.

    Not this call, but each loss goes through DDP.
    """

    def __init__(self, passing: DistributedDataParallel, module: LightningModule) -> None:
        super().__init__()
        self.passing = passing
        self.module = module

    def forward(self, *args: object, **kwargs: object) -> StepOutput:
        """Call the module's `training_step`, after rank 0's buffers were copied to all ranks."""
        self.passing.require_forward_param_sync = True
        # DDP copies buffers in a forward pass only; without gradients it expects no backward pass
        with torch.no_grad():
            self.passing(None)
        return self.module.training_step(*args, **kwargs)

    def prepare_backward(self, loss: Tensor) -> Tensor:
        """Return the loss to run backward from."""
        # The loss was computed with the buffers as they are: no copy of rank 0's before backward
        self.passing.require_forward_param_sync = False
        prepared: Tensor = self.passing(loss)
        return prepared

    def no_sync(self) -> AbstractContextManager[None]:
        """Add up gradients on each rank alone, in backward passes of a `with` block."""
        return self.passing.no_sync()


@dataclass
class DDPStrategy(ParallelStrategy):
    """Every rank holds the whole model.

    Gradients are averaged by DistributedDataParallel, in buckets, while backward still runs.

    Args:
        find_unused_parameters: allow parameters that got no gradient in a step; costs a walk over
            the graph per step.
        static_graph: the set of used parameters never changes; lets torch optimize.
        gradient_as_bucket_view: gradients are views into the buckets: saves one copy of the
            gradients in memory.
        broadcast_buffers: copy rank 0's buffers (running means) to all ranks at each step.
        bucket_cap_mb: size of a bucket in MiB.
        ddp_comm_hook: what is sent in place of the gradients: `fp16` or `bf16` halves what is sent,
            `powersgd` sends matrices of low rank; or a communication hook of
            `torch.distributed.algorithms.ddp_comm_hooks` or one's own.
        ddp_comm_state: the hook's first argument: for PowerSGD a `PowerSGDState`, by default one of
            rank 1 that begins at step 1000.
        ddp_comm_wrapper: such as torch's `bf16_compress_wrapper`: takes the hook, returns the one
            to use.
        uneven: what happens when the ranks have different numbers of training batches; see
            `Strategy`.
        process_group_backend: torch's name of what carries collectives, such as `gloo`. Default:
            what the device wants.
        timeout: how long a rank waits for one that hangs. Default: half an hour.
        start_method: `spawn` or `fork`: workers are local processes, new ones or copies of this
            one, rather than Ray's; see `Trainer(launcher="local")`.
        kwargs: further arguments of DistributedDataParallel.

    Raises:
        ConfigError: there is no such hook, or no such policy.

    Sources: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training",
        2020. Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
        Optimization", 2019.

    Example:
        >>> trainer = Trainer(num_workers=4, strategy=DDPStrategy(ddp_comm_hook="bf16"))
    """

    find_unused_parameters: bool = False
    static_graph: bool = False
    gradient_as_bucket_view: bool = True
    broadcast_buffers: bool = True
    bucket_cap_mb: int | None = None
    ddp_comm_hook: str | Callable[..., Any] | None = None
    ddp_comm_state: Any = None
    ddp_comm_wrapper: Callable[..., Any] | None = None
    uneven: Uneven = "finish"
    process_group_backend: str | None = None
    timeout: timedelta | None = None
    start_method: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    _feedback: ClassVar[Feedback | None] = None  # that of a run stands in the instance

    def __post_init__(self) -> None:
        check_start(self.start_method, self.timeout)
        check_uneven(self.uneven)
        if isinstance(self.ddp_comm_hook, str) and self.ddp_comm_hook not in COMM_HOOKS:
            hint = did_you_mean(self.ddp_comm_hook, COMM_HOOKS)
            raise ConfigError(
                f"ddp_comm_hook={self.ddp_comm_hook!r} is not known.{hint} Use one of"
                f" {', '.join(map(repr, COMM_HOOKS))} or a function."
            )
        if self.ddp_comm_hook is None and (
            self.ddp_comm_state is not None or self.ddp_comm_wrapper is not None
        ):
            raise ConfigError(
                "ddp_comm_state and ddp_comm_wrapper belong to a hook: give ddp_comm_hook, such as"
                " 'powersgd', too."
            )

    def wrap(self, module: LightningModule, world: World) -> nn.Module:
        """Return the module to call with the arguments of `training_step`.

        Raises:
            ConfigError: no parameter requires a gradient.
        """
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ConfigError(
                f"{type(module).__name__} has no parameter that requires a gradient, so there is"
                f" nothing to train on {world.size} ranks."
            )
        kwargs = dict(self.kwargs)
        if not self.broadcast_buffers:
            kwargs["broadcast_buffers"] = False  # newer torch deprecates naming it
        automatic = module.automatic_optimization
        wrapped = DistributedDataParallel(
            TrainingStep(module) if automatic else LossPassing(module),
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            # optimizers stepped by hand have losses of their own, each of some of the parameters
            find_unused_parameters=self.find_unused_parameters
            or not (automatic or self.static_graph),
            static_graph=self.static_graph,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
            bucket_cap_mb=self.bucket_cap_mb,
            **kwargs,
        )
        if self.ddp_comm_hook is not None:
            state, hook = self._hook()
            send = hook if self.ddp_comm_wrapper is None else self.ddp_comm_wrapper(hook)
            feedback = Feedback(state, module) if _has_feedback(state) else None
            self._feedback = feedback  # type: ignore[misc]

            # by its name torch would refuse bfloat16 on the CPU, where gloo sends it too, and by
            # annotations that are strings one of the user's
            def communicate(state: object, bucket: GradBucket) -> object:
                if feedback is not None:
                    feedback.follow(bucket)
                return send(state, bucket)

            wrapped.register_comm_hook(state, lambda state, bucket: communicate(state, bucket))
        return wrapped if automatic else StepByHand(wrapped, module)

    def hint(self, module: LightningModule, error: BaseException) -> str | None:
        """Name the parameters without a gradient, of which torch tells the numbers."""
        told = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        if told is None:
            return None
        names = [name for name, one in module.named_parameters() if one.requires_grad]
        unused = [names[number] for number in map(int, told[1].split()) if number < len(names)]
        several = f" and {len(unused) - SHOWN} more" if len(unused) > SHOWN else ""
        return (
            f"{', '.join(unused[:SHOWN])}{several} had no gradient in a step, and DDP waits"
            " for one of each parameter. Use them in every step, freeze them with"
            " requires_grad_(False), or have DDP look for what is unused:"
            " strategy='ddp_find_unused_parameters_true'."
        )

    def own_state(self, module: LightningModule) -> StateDict:
        """Return this rank's buffers, unless they are rank 0's, and PowerSGD's unsent feedback."""
        if self._world is None or self._world.size == 1:
            return {}
        state: StateDict = {}
        if not self.broadcast_buffers:
            state["buffers"] = own_buffers(module, self._world)
        if self._feedback is not None:
            state["feedback"] = self._feedback.state_dict()
        return state

    def load_own_state(self, module: LightningModule, state: StateDict) -> None:
        """Restore the state from `own_state`."""
        super().load_own_state(module, state)
        if self._feedback is not None and "feedback" in state:
            self._feedback.load_state_dict(state["feedback"])

    def _hook(self) -> tuple[object, Callable[..., object]]:
        """Return the state and the function to register."""
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook

        if callable(self.ddp_comm_hook):
            return self.ddp_comm_state, self.ddp_comm_hook
        if self.ddp_comm_hook == "fp16":
            return self.ddp_comm_state, default_hooks.fp16_compress_hook
        if self.ddp_comm_hook == "bf16":
            return self.ddp_comm_state, default_hooks.bf16_compress_hook
        state = self.ddp_comm_state or powerSGD_hook.PowerSGDState(process_group=None)
        return state, powerSGD_hook.powerSGD_hook


class Feedback:
    """The error feedback of PowerSGD (gradients left unsent, to be added later), in checkpoints.

    With it come the matrices from which the next approximation starts. PowerSGD keeps both by
    bucket, and DDP makes its buckets anew after the first step of a fit: so here they are kept by
    parameter. With `warm_start=False` each step draws new matrices in the order of the buckets,
    which no checkpoint can bring back: then the first steps of a resumed fit differ.

    Args:
        state: the `PowerSGDState`.
        module: whose parameters are meant.
    """

    def __init__(self, state: Any, module: nn.Module) -> None:
        self._state = state
        self._names = {id(one): name for name, one in module.named_parameters()}
        self._shapes = {
            name: (one.shape[0] if one.dim() else 1, one.numel())
            for name, one in module.named_parameters()
        }
        self._buckets: dict[int, list[str]] = {}
        # of parameters whose bucket has not come yet
        self._loose_errors: dict[str, Tensor] = {}
        self._loose_starts: dict[str, Tensor] = {}

    def follow(self, bucket: GradBucket) -> None:
        """Look at the bucket sent next; in another one than before, put together its part."""
        index = bucket.index()
        names = [self._names[id(parameter)] for parameter in bucket.parameters()]
        if self._buckets.get(index) == names:
            return
        state = self._state
        if index in self._buckets:
            self._loose_errors |= self._errors()
            self._loose_starts |= self._starts(self._buckets, state.q_memory_dict)
            for kept in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
                kept.clear()
            self._buckets = {}
        self._buckets[index] = names
        device = bucket.buffer().device
        if all(name in self._loose_errors for name in names):
            parts = [self._loose_errors.pop(name) for name in names]
            state.error_dict[index] = torch.cat(parts).to(device)
        layout = self._layout(names)
        if layout and all(name in self._loose_starts for name, *_ in layout):
            parts = [self._loose_starts.pop(name) for name, *_ in layout]
            state.q_memory_dict[index] = torch.cat(parts).to(device)
            # written anew in each step
            state.p_memory_dict[index] = state.q_memory_dict[index].new_empty(
                sum(size for _, size, _ in layout)
            )

    def _layout(self, names: list[str]) -> list[tuple[str, int, int]]:
        """Return which parameters of a bucket are sent as matrices of low rank, as these lie there.

        Returns:
            Names, and the sizes of their left and right matrices; those of one shape together.
        """
        state = self._state
        by_shape: dict[tuple[int, int, int], list[str]] = {}
        for name in names:
            rows, size = self._shapes[name]
            columns = size // rows if rows else 0
            rank = min(rows, columns, state.matrix_approximation_rank)
            # torch's own rule (`_should_compress`), whose outcome is kept nowhere
            if (rows + columns) * rank * state.min_compression_rate < size:
                by_shape.setdefault((rows, columns, rank), []).append(name)
        return [
            (name, rows * rank, columns * rank)
            for (rows, columns, rank), group in by_shape.items()
            for name in group
        ]

    def _errors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for index, names in self._buckets.items():
            if index in self._state.error_dict:
                sizes = [self._shapes[name][1] for name in names]
                parts = self._state.error_dict[index].split(sizes)
                found.update(zip(names, parts, strict=True))
        return found

    def _starts(
        self, buckets: dict[int, list[str]], memory: dict[int, Tensor]
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if not self._state.warm_start:
            return found  # each step starts from others
        for index, names in buckets.items():
            layout = self._layout(names)
            sizes = [size for _, _, size in layout]
            if index in memory and memory[index].numel() == sum(sizes):
                parts = memory[index].split(sizes)
                found.update((name, part) for (name, *_), part in zip(layout, parts, strict=True))
        return found

    def state_dict(self) -> StateDict:
        """Return it as plain data, tensors by the names of parameters."""
        state = self._state
        name, keys, position, has_gauss, cached = state.rng.get_state()
        return {
            "iter": state.iter,
            "errors": self._loose_errors | self._errors(),
            "starts": self._loose_starts | self._starts(self._buckets, state.q_memory_dict),
            "rng": (name, keys.tolist(), position, has_gauss, cached),
        }

    def load_state_dict(self, kept: StateDict) -> None:
        """Restore the state from `state_dict`."""
        state = self._state
        state.iter = kept["iter"]
        self._loose_errors = dict(kept["errors"])
        if "starts" in kept:
            self._loose_starts = dict(kept["starts"])
        else:  # an earlier version kept them by bucket
            self._loose_starts = self._starts(kept["buckets"], kept["low_rank"][1])
        name, keys, position, has_gauss, cached = kept["rng"]
        state.rng.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))


def _has_feedback(state: object) -> bool:
    from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState

    return isinstance(state, PowerSGDState)


def check_uneven(uneven: str) -> None:
    """Refuse a policy that there is not.

    Raises:
        ConfigError: it is neither `finish` nor `drop`.
    """
    if uneven not in ("finish", "drop"):
        raise ConfigError(f"uneven={uneven!r} is not known. Use 'finish' or 'drop'.")
