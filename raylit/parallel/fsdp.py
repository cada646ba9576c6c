"""Fully sharded data parallelism by torch's `fully_shard` (FSDP2).

Every rank holds a part of each parameter, gradient and optimizer state.

Units are gathered whole for the time of their forward and backward pass. The unit around all others
is not the user's module, but a wrapper whose forward pass is `training_step` or a step of
evaluation: so the module keeps its class and its names, and parameters of its own are whole in its
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from raylit.errors import ConfigError
from raylit.parallel.ddp import check_uneven
from raylit.parallel.strategy import ParallelStrategy, Uneven, check_start, own_buffers
from raylit.parallel.units import (
    OfClasses,
    Unit,
    callable_children,
    choose_units,
    is_part,
    part_like,
    policy_of,
    tied_together,
)
from raylit.runtime.aliases import Arguments, StateDict, StepOutput, UserOptimizer

if TYPE_CHECKING:
    from torch.distributed.fsdp import MixedPrecisionPolicy
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    from raylit.core.module import LightningModule
    from raylit.parallel.precision import Precision
    from raylit.parallel.world import World

T = TypeVar("T")
UNIT_SIZE = 1_000_000  # parameters
RESHARDS = {"FULL_SHARD": None, "HYBRID_SHARD": None, "SHARD_GRAD_OP": False}  # Lightning's names


class Steps(nn.Module):
    """Makes the steps of a module forward passes, since FSDP gathers parameters for these."""

    def __init__(self, module: LightningModule) -> None:
        super().__init__()
        self.module = module
        self.roots: tuple[Any, ...] = ()

    def forward(self, *args: object, step: str = "training_step", **kwargs: object) -> StepOutput:
        """Call a step of the module."""
        return getattr(self.module, step)(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Add up whole gradients on each rank alone, in backward passes of a `with` block."""
        for root in self.roots:
            root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            for root in self.roots:
                root.set_requires_gradient_sync(True)


class Around(nn.Module):
    """Stands around modules that are gathered together, as their root; it is never called."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.inner = nn.ModuleList(modules)

    def forward(self) -> None:
        """Do nothing: torch refuses a root without a forward pass."""


@dataclass
class FSDPStrategy(ParallelStrategy):
    """Every rank holds a part of each parameter, gradient and optimizer state.

    On one rank nothing is changed.

    Optimizers are made of the sharded parameters, and gradient clipping bounds the norm over all
    parts.

    Args:
        auto_wrap_policy: which submodules are gathered as a unit: a class, classes, or their import
            paths (`torch.nn.TransformerEncoderLayer`); or a policy as torch's own, called with
            `module`, `recurse=False` and `nonwrapped_numel`.
        min_num_params: without a policy, units are the smallest submodules with so many parameters.
            Default: a million.
        reshard_after_forward: whether a unit is parted again between forward and backward; None:
            all but the outermost. A number: parted among so many ranks only.
        sharding_strategy: Lightning's spelling: `FULL_SHARD`; `SHARD_GRAD_OP` is
            `reshard_after_forward=False`; `HYBRID_SHARD` parts within a node and keeps a copy on
            each.
        device_mesh: `(copies, parts)` of `HYBRID_SHARD`. Default: nodes, and ranks of each.
        cpu_offload: whether parameters, gradients and optimizer states stay in host memory. Nothing
            changes on the CPU.
        mixed_precision: a `MixedPrecisionPolicy`. Default: with a `mixed` precision of the Trainer,
            parameters are gathered in its format and gradients are reduced in float32.
        state_dict_type: `full`: checkpoints are one file, gathered on rank 0; `sharded`: a folder,
            into which every rank writes its part.
        async_save: whether such a folder is written in the background, while training goes on.
        uneven: what happens when the ranks have different numbers of training batches; see
            `Strategy`.
        process_group_backend: torch's name of what carries collectives, such as `gloo`. Default:
            what the device wants.
        timeout: how long a rank waits for one that hangs. Default: half an hour.
        start_method: `spawn` or `fork`: workers are local processes, new ones or copies of this
            one, rather than Ray's; see `Trainer(launcher="local")`.
        kwargs: further arguments of `fully_shard`.

    Raises:
        ConfigError: an argument is out of range, or an import path leads to no class.

    Sources: Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", 2023;
    https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html

    Example:
        >>> trainer = Trainer(
        ...     num_workers=4, strategy=FSDPStrategy(auto_wrap_policy={nn.TransformerEncoderLayer})
        ... )
    """

    auto_wrap_policy: Any = None
    min_num_params: int | None = None
    reshard_after_forward: bool | int | None = None
    sharding_strategy: str = "FULL_SHARD"
    device_mesh: tuple[int, int] | None = None
    cpu_offload: bool = False
    mixed_precision: Any = None
    state_dict_type: Literal["full", "sharded"] = "full"
    async_save: bool = False
    uneven: Uneven = "finish"
    process_group_backend: str | None = None
    timeout: timedelta | None = None
    start_method: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)

    _steps: ClassVar[Steps | None] = None
    _units: ClassVar[Sequence[Unit]] = ()  # those of a run stand in the instance

    def __post_init__(self) -> None:
        check_start(self.start_method, self.timeout)
        check_uneven(self.uneven)
        name = str(getattr(self.sharding_strategy, "name", self.sharding_strategy)).upper()
        if name not in RESHARDS:
            instead = " NO_SHARD is strategy='ddp'." if name == "NO_SHARD" else ""
            raise ConfigError(
                f"sharding_strategy={self.sharding_strategy!r} is not known.{instead} Use one of"
                f" {', '.join(RESHARDS)}."
            )
        if self.device_mesh is not None and name != "HYBRID_SHARD":
            raise ConfigError(
                f"device_mesh={self.device_mesh} has a meaning with"
                " sharding_strategy='HYBRID_SHARD' only."
            )
        if self.state_dict_type not in ("full", "sharded"):
            raise ConfigError(
                f"state_dict_type={self.state_dict_type!r} is not known. Use 'full' or 'sharded'."
            )
        if self.async_save and self.state_dict_type == "full":
            raise ConfigError(
                "async_save=True needs state_dict_type='sharded': one file is gathered on rank 0"
                " while the others wait."
            )
        if self.auto_wrap_policy is not None and self.min_num_params is not None:
            raise ConfigError(
                "auto_wrap_policy and min_num_params were both given. Leave one of them out."
            )
        self.sharding_strategy = name
        self.saves_folders = self.state_dict_type == "sharded"
        self.saves_in_background = self.async_save
        self._policy = policy_of(self.auto_wrap_policy)

    @property
    def shards(self) -> bool:  # type: ignore[override]
        """Whether a rank holds a part of each parameter only: if there are several."""
        return self._world is not None and self._world.size > 1

    # ---- a run's beginning and end ----

    def shard(self, module: LightningModule, world: World, precision: Precision) -> None:
        """Part the module's parameters among the ranks, in place.

        Raises:
            ConfigError: the module cannot be sharded as it is.
        """
        if isinstance(self._policy, OfClasses):
            self._policy.check(module)  # on one rank too: a mistake is found before the cluster
        if world.size == 1:
            return
        from torch.distributed.fsdp import fully_shard

        if any(is_part(parameter) for parameter in module.parameters()):
            raise ConfigError(
                f"{type(module).__name__} is sharded already: by a run that an exception ended, or"
                " by its own code. Make it anew and leave fully_shard out."
            )
        if any(child._compiled_call_impl is not None for child in module.modules()):
            raise ConfigError(
                "Trainer(compile=...) and FSDP on several ranks do not go together here: leave out"
                " compile, or use strategy='ddp'."
            )
        options = {"mesh": self._mesh(world), **self._placing(world), **self.kwargs}
        policy, whole = self._mixing(precision)
        manual = not module.automatic_optimization
        if manual and next(iter(module._parameters.values()), None) is not None:
            raise ConfigError(
                f"{type(module).__name__} has parameters of its own, beside those of its"
                " submodules, and steps its optimizers by hand: FSDP gathers parameters for calls"
                " of modules only. Put them into a submodule, or use automatic optimization."
            )
        # Optimizers are toggled: which parameters require gradients is looked at when they are
        # gathered
        if manual:
            options["reshard_after_forward"] = True
        steps = Steps(module)
        together = tied_together(list(callable_children(module))) if manual else [[steps]]
        children = [child for group in together for child in group]
        inner = [
            [unit]
            for unit in choose_units(module, self._wants_unit, norms=policy is not whole)
            if unit not in children
        ]
        # Inner ones first: what is sharded later takes the parameters that are left
        units = [Unit(targets) for targets in [*inner, *together]]
        for unit in units:
            is_norm = isinstance(unit.module, nn.modules.batchnorm._BatchNorm)
            fully_shard(
                unit.module if len(unit.modules) == 1 else unit.modules,
                mp_policy=whole if is_norm else policy,
                **options,
            )
        # torch wants one module as a root: of several that are gathered together, one around them
        # that is never called
        roots = [
            group[0] if len(group) == 1 else fully_shard(Around(group), mp_policy=policy, **options)
            for group in together
        ]
        steps.roots = tuple(roots)
        for root in roots:
            # Else a unit that a hook calls first would take itself for the root.
            fully_shard.state(root)._lazy_init()  # type: ignore[attr-defined]
        self._steps, self._units = steps, units  # type: ignore[misc]

    def wrap(self, module: LightningModule, world: World) -> nn.Module | None:
        """Return the wrapper that calls the module's steps."""
        return self._steps

    def bring_home(self, module: LightningModule, optimizers: list[UserOptimizer]) -> None:
        """Make the module whole again, on every rank, in host memory.

        Of optimizers rank 0 gets the state.
        """
        if self._steps is None:
            return
        self.settle(module)
        self._share_buffers(module)
        made: dict[int, nn.Parameter] = {}
        for owner in module.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None and is_part(parameter):
                    # By identity: a parameter that modules share is to stay one
                    if id(parameter) not in made:
                        made[id(parameter)] = nn.Parameter(
                            self._gathered(parameter), parameter.requires_grad
                        )
                    owner._parameters[name] = made[id(parameter)]
        for optimizer in optimizers:
            kept = {key: self._whole(values) for key, values in optimizer.state.items()}
            optimizer.state.clear()
            for group in optimizer.param_groups:
                parts = group["params"]
                group["params"] = [made.get(id(one), one) for one in group["params"]]
                for part, parameter in zip(parts, group["params"], strict=True):
                    if part in kept and self.world.is_zero:
                        optimizer.state[parameter] = kept[part]
        for unit in self._units:
            unit.undo()
        # The class's own show again, which are those of no run
        del self._steps, self._units

    # ---- evaluation ----

    def step(
        self, module: LightningModule, wrapped: nn.Module | None, name: str
    ) -> Callable[..., StepOutput]:
        """Return the function that an evaluation calls for its step `name`."""
        return getattr(module, name) if wrapped is None else partial(wrapped, step=name)

    def together(self, batches: Iterator[object]) -> Iterable[Any]:
        """Give the batches of an evaluation.

        Those that not all ranks have are evaluated with whole parameters, without the others' help.
        """
        if self._steps is None:
            yield from batches
            return
        self._share_buffers(self._steps.module)
        while (
            have := self.world.gather_numbers((item := next(batches, None)) is not None)
        ) and all(have):
            yield item
        if any(have):
            for unit in self._units:
                unit.keep_whole()
            try:
                if item is not None:
                    yield item
                    yield from batches
            finally:
                for unit in self._units:
                    unit.part_again()

    def settle(self, module: LightningModule) -> None:
        """Shard again the parameters left whole by a forward pass without a backward pass."""
        if self._steps is not None:
            for unit in self._units:
                unit.module.reshard()

    # ---- checkpoints ----

    def whole(self, state: T) -> T:
        """Return nested state with whole tensors in host memory on rank 0, empty ones elsewhere."""
        return state if self._steps is None else self._whole(state)

    def _whole(self, state: T) -> T:
        def gather(value: Any) -> object:
            if not is_part(value):
                return value
            gathered = self._gathered(value)
            return (
                gathered
                if self.world.is_zero
                else torch.empty(value.shape, dtype=value.dtype, device="meta")
            )

        gathered: T = tree_map(gather, state)
        return gathered

    def _gathered(self, value: Any) -> Tensor:
        full: Tensor = value.detach().to(self.world.device).full_tensor()
        return full.cpu()

    def optimizer_state(self, optimizer: UserOptimizer, state: StateDict) -> StateDict:
        """Return the part of an optimizer's whole state that this rank keeps."""
        if self._steps is None:
            return state
        parameters = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        of = dict(zip(numbers, parameters, strict=False))
        parted = {
            number: tree_map(partial(part_like, of[number]), values)
            for number, values in state["state"].items()
        }
        return {**state, "state": parted}

    def gradients(self, module: LightningModule) -> dict[str, Tensor]:
        """Return the whole gradients that this rank alone has added up within an accumulation."""
        if self._steps is None:
            return super().gradients(module)
        found = {}
        for name, parameter in self._parameters():
            # Set only where gradients are reduced in another format than they are computed in
            gradient = parameter.unsharded_accumulated_grad
            gradient = (
                getattr(parameter, "_unsharded_param", parameter.sharded_param).grad
                if gradient is None
                else gradient
            )
            if gradient is not None:
                found[name] = gradient
        return found

    def set_gradients(self, module: LightningModule, gradients: dict[str, Tensor]) -> None:
        """Bring back the gradients of `gradients`."""
        if self._steps is None:
            super().set_gradients(module, gradients)
            return
        for name, parameter in self._parameters():
            if name in gradients:
                parameter.unsharded_accumulated_grad = gradients[name].to(self.world.device)

    def _parameters(self) -> Iterator[tuple[str, FSDPParam]]:
        """Yield torch's record of each parameter, with the name it has in the module."""
        assert self._steps is not None
        names = {id(parameter): name for name, parameter in self._steps.module.named_parameters()}
        for unit in self._units:
            for group in unit.groups:
                for parameter in group.fsdp_params:
                    yield names[id(parameter.sharded_param)], parameter

    def own_state(self, module: LightningModule) -> StateDict:
        """Return this rank's buffers: each updates its own, and only evaluations share rank 0's."""
        return {} if self._steps is None else {"buffers": own_buffers(module, self.world)}

    # ---- how ----

    def _share_buffers(self, module: LightningModule) -> None:
        """Give all ranks rank 0's buffers (running means), as DDP does."""
        with torch.no_grad():
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def _wants_unit(self, module: nn.Module, number: int) -> bool:
        """Tell whether a module with so many parameters outside of other units is to be one."""
        if self._policy is not None:
            return self._policy(module=module, recurse=False, nonwrapped_numel=number)
        return number >= (UNIT_SIZE if self.min_num_params is None else self.min_num_params)

    def _mesh(self, world: World) -> object:
        from torch.distributed.device_mesh import init_device_mesh

        if self.sharding_strategy != "HYBRID_SHARD":
            return init_device_mesh(world.device.type, (world.size,))
        copies, parts = self.device_mesh or (world.num_nodes, world.size // world.num_nodes)
        if copies * parts != world.size and self.device_mesh is None:
            raise ConfigError(
                f"HYBRID_SHARD keeps a copy of the model on each node, but {world.size} ranks are"
                f" not shared out evenly among {world.num_nodes} nodes. Give the copies and the"
                " ranks of each: FSDPStrategy(device_mesh=(copies, ranks))."
            )
        if copies * parts != world.size:
            raise ConfigError(
                f"device_mesh=({copies}, {parts}) means {copies * parts} ranks, but there are"
                f" {world.size}."
            )
        return init_device_mesh(
            world.device.type, (copies, parts), mesh_dim_names=("copies", "parts")
        )

    def _placing(self, world: World) -> Arguments:
        from torch.distributed.fsdp import CPUOffloadPolicy

        given = self.reshard_after_forward
        placing: dict[str, object] = {
            "reshard_after_forward": RESHARDS[self.sharding_strategy] if given is None else given
        }
        if self.cpu_offload and world.device.type != "cpu":
            placing["offload_policy"] = CPUOffloadPolicy()
        return placing

    def _mixing(self, precision: Precision) -> tuple[MixedPrecisionPolicy, MixedPrecisionPolicy]:
        """Return the policy of units, and that of batch norm.

        Its running means are in float32, and its parameters have to be so too.
        """
        from torch.distributed.fsdp import MixedPrecisionPolicy

        whole = MixedPrecisionPolicy(cast_forward_inputs=False)
        if self.mixed_precision is not None:
            return self.mixed_precision, whole
        if precision.is_mixed:  # autocast casts the inputs
            return (
                MixedPrecisionPolicy(
                    param_dtype=precision.dtype,
                    reduce_dtype=torch.float32,
                    cast_forward_inputs=False,
                ),
                whole,
            )
        return whole, whole
