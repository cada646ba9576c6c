"""Data parallelism by torch's DistributedDataParallel: every rank holds the model, gradients are averaged in buckets during backward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from raylit.errors import ConfigError

if TYPE_CHECKING:
    from raylit.module import LightningModule
    from raylit.parallel.world import World


class TrainingStep(nn.Module):
    """Makes `training_step` a forward pass, since DDP synchronizes what its own forward was called for."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module's `training_step`."""
        return self.module.training_step(*args, **kwargs)


@dataclass
class DDPStrategy:
    """Arguments of DistributedDataParallel.

    Attributes:
        find_unused_parameters: allow parameters that got no gradient in a step; costs a walk over the graph per step.
        static_graph: the set of used parameters never changes; lets torch optimize.
        gradient_as_bucket_view: gradients are views into the buckets: saves one copy of the gradients in memory.
        broadcast_buffers: copy rank 0's buffers (running means) to all ranks at each step.
        bucket_cap_mb: size of a bucket in MiB.
        kwargs: further arguments of DistributedDataParallel.

    Source: Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", 2020.
    """

    find_unused_parameters: bool = False
    static_graph: bool = False
    gradient_as_bucket_view: bool = True
    broadcast_buffers: bool = True
    bucket_cap_mb: int | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    _world: World | None = field(default=None, init=False, repr=False, compare=False)

    def wrap(self, module: LightningModule, world: World) -> nn.Module:
        """Return the module to call with the arguments of `training_step`.

        Raises:
            ConfigError: no parameter requires a gradient.
        """
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ConfigError(
                f"{type(module).__name__} has no parameter that requires a gradient, so there is nothing to train on {world.size} ranks."
            )
        kwargs = dict(self.kwargs)
        if not self.broadcast_buffers:
            kwargs["broadcast_buffers"] = False  # newer torch deprecates naming it
        return DistributedDataParallel(
            TrainingStep(module),
            device_ids=[world.device.index] if world.device.type == "cuda" else None,
            find_unused_parameters=self.find_unused_parameters,
            static_graph=self.static_graph,
            gradient_as_bucket_view=self.gradient_as_bucket_view,
            bucket_cap_mb=self.bucket_cap_mb,
            **kwargs,
        )

    # ---- what user code asks of `trainer.strategy` while a job runs, on one rank as on many ----

    @property
    def world(self) -> World:
        """This rank's place among all.

        Raises:
            RuntimeError: no job was run yet.
        """
        if self._world is None:
            raise RuntimeError("What trainer.strategy knows of ranks and devices is known while a job runs, from setup on.")
        return self._world

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

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """Return the `obj` of rank `src` on every rank; it is pickled."""
        return self.world.broadcast_object(obj, src)

    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        """Return the ranks' tensors stacked; `tensor` itself when alone."""
        return self.world.all_gather(tensor, sync_grads)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: str | None = "mean") -> Any:
        """Return the `mean` or the `sum` of the ranks' tensors; what is no tensor is returned as it is.

        Raises:
            ConfigError: `reduce_op` is neither.
        """
        if str(reduce_op).lower() not in ("mean", "avg", "sum"):
            raise ConfigError(f"strategy.reduce(reduce_op={reduce_op!r}) is not known. Use 'mean' or 'sum'.")
        if not isinstance(tensor, Tensor) or self.world.size == 1:
            return tensor
        gathered = self.world.all_gather(tensor)
        return (
            gathered.sum(0)
            if str(reduce_op).lower() == "sum"
            else gathered.mean(0, dtype=None if tensor.is_floating_point() else torch.float32)
        )

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        """Return whether all ranks (or any of them) decided so."""
        return not self.world.any(not decision) if all else self.world.any(decision)


def no_sync(model: nn.Module | None) -> AbstractContextManager[Any]:
    """Within, backward passes add up gradients on each rank alone: for all but the last batch of an accumulation."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def find_strategy(strategy: str | DDPStrategy) -> DDPStrategy:
    """Return the strategy for its short name.

    Raises:
        ConfigError: there is no such strategy.
    """
    if isinstance(strategy, DDPStrategy):
        return strategy
    if strategy in ("auto", "ddp"):
        return DDPStrategy()
    if strategy == "ddp_find_unused_parameters_true":
        return DDPStrategy(find_unused_parameters=True)
    raise ConfigError(f"strategy={strategy!r} is not known. Use 'auto', 'ddp', 'ddp_find_unused_parameters_true' or a DDPStrategy object.")
