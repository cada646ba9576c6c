"""Data parallelism by torch's DistributedDataParallel: every rank holds the model, gradients are averaged in buckets during backward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
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
