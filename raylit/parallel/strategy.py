"""Strategy: how the ranks keep one model in step.

The contract, and the part of it that user code calls on `trainer.strategy`.

Who calls what, on every rank:

    worker.place        shard      before optimizers are made
                        wrap       after; again when other parameters require gradients
    loop                the wrapped module in place of `training_step`; its `no_sync()` for all but
                        the last batch of an accumulation;
                        its `prepare_backward(loss)`, if it has one, before each backward pass of
                        manual optimization
    evaluation          step, together, settle
    checkpoint          whole, optimizer_state, gradients, set_gradients, own_state, load_own_state
    worker.bring_home   bring_home

A strategy of one's own derives from this class and overrides `wrap`, and the rest where parameters
are not whole on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from raylit.errors import ConfigError
from raylit.runtime import environment
from raylit.runtime.aliases import StateDict, StepOutput, UserOptimizer

if TYPE_CHECKING:
    from raylit.core.module import LightningModule
    from raylit.core.trainer import RunningTrainer
    from raylit.parallel.precision import Precision
    from raylit.parallel.world import World

T = TypeVar("T")
Uneven = Literal["finish", "drop"]


class Strategy:
    """How the ranks keep one model in step.

    Attributes:
        uneven: what happens to an epoch of training in which the ranks have different numbers of
            batches. `finish`: it lasts until every rank has read all it has; those that are through
            earlier begin again. `drop`: it ends for all with the first that has no more.
        shards: whether a rank holds a part of each parameter only, so that forward passes and
            checkpoints need all ranks.
        saves_folders: whether a checkpoint is a folder into which every rank writes its part.
        saves_in_background: whether it does so while training goes on.
        process_group_backend: torch's name of what carries collectives, such as `gloo`; None: what
            the device wants.
        timeout: how long a rank waits for one that hangs; None: half an hour, or RAYLIT_TIMEOUT_S.
        start_method: how local processes are started: `spawn` and its likes (`popen`,
            `forkserver`) as new ones, `fork` as copies of this one; None: Ray starts the workers.
    """

    uneven: Uneven = "finish"
    shards: bool = False
    saves_folders: bool = False
    saves_in_background: bool = False
    find_unused_parameters: bool = False
    process_group_backend: str | None = None
    timeout: timedelta | None = None
    start_method: str | None = None
    _world: World | None = None
    _trainer: RunningTrainer | None = None

    def __getstate__(self) -> StateDict:
        live = ("_world", "_trainer", "_steps", "_units", "_feedback")
        return {name: value for name, value in vars(self).items() if name not in live}

    def refuse_if_sharded(self, what: str) -> None:
        """Say that something needs the whole model on each rank.

        Raises:
            ConfigError: no rank has it.
        """
        if self.shards:
            raise ConfigError(
                f"{what}, but {type(self).__name__} leaves a part of the model on each rank. Leave"
                " it out, or use strategy='ddp'."
            )

    def timeout_s(self) -> float:
        """Return how many seconds a rank waits for one that hangs."""
        if self.timeout is not None:
            return self.timeout.total_seconds()
        return environment.seconds("RAYLIT_TIMEOUT_S", 1800.0)

    # ---- what a run asks ----

    def hint(self, module: LightningModule, error: BaseException) -> str | None:
        """Return advice about an exception, where this strategy knows more than its text."""
        return None

    def attach(self, world: World) -> None:
        """A job begins on this rank."""
        self._world = world

    def shard(self, module: LightningModule, world: World, precision: Precision) -> None:
        """Change the module in place, before optimizers are made of its parameters."""

    def wrap(self, module: LightningModule, world: World) -> nn.Module | None:
        """Return the module to call with the arguments of `training_step`, on several ranks.

        None: `training_step` itself.
        """
        return None

    def step(
        self, module: LightningModule, wrapped: nn.Module | None, name: str
    ) -> Callable[..., StepOutput]:
        """Return the function that an evaluation calls for its step `name`."""
        function: Callable[..., object] = getattr(module, name)
        return function

    def together(self, batches: Iterator[T]) -> Iterable[T]:
        """Return the batches of an evaluation; ranks may have different numbers of them."""
        return batches

    def settle(self, module: LightningModule) -> None:
        """Bring the module back to how it is between steps."""

    def whole(self, state: T) -> T:
        """Return nested state as one file is to hold it.

        All ranks come here, and on rank 0 nothing in it may be a part.
        """
        return state

    def optimizer_state(self, optimizer: UserOptimizer, state: StateDict) -> StateDict:
        """Return this rank's part of an optimizer's state, as the file held it."""
        return state

    def gradients(self, module: LightningModule) -> dict[str, Tensor]:
        """Return this rank's gradients by parameter, within an accumulation."""
        return {
            name: parameter.grad
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        }

    def set_gradients(self, module: LightningModule, gradients: dict[str, Tensor]) -> None:
        """Bring back the gradients of `gradients`."""
        parameters = dict(module.named_parameters())
        for name, gradient in gradients.items():
            parameters[name].grad = gradient.to(parameters[name].device)

    def own_state(self, module: LightningModule) -> StateDict:
        """Return the state of the model that this rank alone holds between steps, as plain data."""
        return {}

    def load_own_state(self, module: LightningModule, state: StateDict) -> None:
        """Restore the state from `own_state`, which is empty if other ranks saved it."""
        buffers = dict(module.named_buffers())
        with torch.no_grad():
            for name, value in state.get("buffers", {}).items():
                if name in buffers and buffers[name].shape == value.shape:
                    buffers[name].copy_(value)

    def bring_home(self, module: LightningModule, optimizers: list[UserOptimizer]) -> None:
        """Undo `shard`: the module is as before it, but for the weights, which are those of now."""

    # ---- what user code asks of `trainer.strategy` while a job runs, on one rank as on many ----

    @property
    def world(self) -> World:
        """This rank's place among all.

        Raises:
            RuntimeError: no job was run yet.
        """
        if self._world is None:
            raise RuntimeError(
                "What trainer.strategy knows of ranks and devices is known while a job runs, from"
                " setup on."
            )
        return self._world

    @property
    def model(self) -> nn.Module | None:
        """The module as it is trained: wrapped by DDP on several ranks. None before a job."""
        return None if self._trainer is None else self._trainer.model

    @property
    def lightning_module(self) -> LightningModule | None:
        """The module, never wrapped. None before a job."""
        return None if self._trainer is None else self._trainer.lightning_module

    @property
    def optimizers(self) -> list[UserOptimizer]:
        """The optimizers of the job; none before it."""
        return [] if self._trainer is None else self._trainer.optimizers

    def show(self, trainer: RunningTrainer) -> None:
        """A job begins whose model and optimizers this Trainer holds."""
        self._trainer = trainer

    @property
    def root_device(self) -> torch.device:
        """Where this rank computes."""
        return self.world.device

    @property
    def global_rank(self) -> int:
        """Rank among all processes."""
        return self.world.rank

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this node."""
        return self.world.local_rank

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.world.size

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.world.is_zero

    def barrier(self, name: str | None = None) -> None:
        """Wait for all ranks."""
        self.world.barrier()

    def broadcast(self, obj: object, src: int = 0) -> Any:
        """Return the `obj` of rank `src` on every rank; it is pickled."""
        return self.world.broadcast_object(obj, src)

    def all_gather(self, tensor: Tensor, group: object = None, sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors stacked; `tensor` itself when alone."""
        return self.world.all_gather(tensor, sync_grads)

    def reduce(self, tensor: object, group: object = None, reduce_op: str | None = "mean") -> Any:
        """Return the `mean` or the `sum` of the ranks' tensors.

        Anything that is no tensor is returned as it is.

        Raises:
            ConfigError: `reduce_op` is neither.
        """
        if str(reduce_op).lower() not in ("mean", "avg", "sum"):
            raise ConfigError(
                f"strategy.reduce(reduce_op={reduce_op!r}) is not known. Use 'mean' or 'sum'."
            )
        if not isinstance(tensor, Tensor) or self.world.size == 1:
            return tensor
        gathered = self.world.all_gather(tensor)
        if str(reduce_op).lower() == "sum":
            return gathered.sum(0)
        return gathered.mean(0, dtype=None if tensor.is_floating_point() else torch.float32)

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return whether all ranks (or any of them) decided so."""
        return not self.world.any(not decision) if all else self.world.any(decision)


class ParallelStrategy(Strategy):
    """A strategy for several ranks."""


class SingleDeviceStrategy(Strategy):
    """One rank. On several each would train a model of its own, so that is refused.

    Args:
        device: not used: it is what `Trainer(accelerator=...)` says.

    Example:
        >>> trainer = Trainer(strategy=SingleDeviceStrategy(), max_epochs=1)
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def attach(self, world: World) -> None:
        """A job begins.

        Raises:
            ConfigError: it has several ranks.
        """
        if world.size > 1:
            raise ConfigError(
                f"SingleDeviceStrategy is for one rank, and there are {world.size}. Use"
                " strategy='ddp', or devices=1."
            )
        super().attach(world)


START_METHODS = ("popen", "spawn", "fork", "forkserver")


def check_start(start_method: str | None, timeout: timedelta | None) -> None:
    """Check how processes are to be started, and how long they wait for each other.

    Raises:
        ConfigError: there is no such method, or the time is none.
    """
    if start_method is not None and start_method not in START_METHODS:
        raise ConfigError(
            f"start_method={start_method!r} is not known. Use one of"
            f" {', '.join(map(repr, START_METHODS))}, or leave it out."
        )
    if timeout is not None and not isinstance(timeout, timedelta):
        raise ConfigError(f"timeout={timeout!r}: give a datetime.timedelta, such as of minutes=10.")


def own_buffers(module: nn.Module, world: World) -> dict[str, Tensor]:
    """Return the buffers of a rank other than 0, whose own are in the module's state."""
    return {} if world.is_zero else {name: one.detach() for name, one in module.named_buffers()}
