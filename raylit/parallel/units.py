"""Units of FSDP.

Which submodules are gathered together, how they are sharded, and how that is undone.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raylit.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.fsdp._fully_shard._fsdp_common import FSDPMeshInfo
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup


def choose_units(
    module: nn.Module, wants: Callable[[nn.Module, int], bool], *, norms: bool
) -> list[nn.Module]:
    """Return the submodules to make units of, inner ones first.

    Args:
        module: what is sharded.
        wants: is asked of a submodule, and the number of its parameters that are in no unit yet.
        norms: whether each batch norm is a unit, since its parameters are to be gathered in another
            format.
    """
    uses = Counter(
        id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False)
    )

    def is_closed(candidate: nn.Module) -> bool:
        """Tell whether no parameter of it is used outside of it too."""
        inside = Counter(
            id(parameter) for _, parameter in candidate.named_parameters(remove_duplicate=False)
        )
        return bool(inside) and all(uses[key] == number for key, number in inside.items())

    chosen: list[nn.Module] = []

    def visit(candidate: nn.Module) -> int:
        """Choose within `candidate` and perhaps it.

        Returns how many of its parameters are in no unit yet.
        """
        if candidate in chosen:
            return 0
        number = sum(visit(child) for child in candidate.children())
        number += sum(
            parameter.numel()
            for parameter in candidate._parameters.values()
            if parameter is not None
        )
        # A list or dict is never called, and FSDP gathers parameters for calls alone
        if candidate is module or isinstance(candidate, (nn.ModuleList, nn.ModuleDict)):
            return number
        is_norm = norms and isinstance(candidate, _BatchNorm)
        if (is_norm or wants(candidate, number)) and is_closed(candidate):
            chosen.append(candidate)
            return 0
        return number

    visit(module)
    return chosen


class Unit:
    """Modules that `fully_shard` is about to change together, with their state before.

    Several, where they share parameters: these are gathered for all of them.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self._classes = [type(module) for module in modules]
        self._attributes = [set(vars(module)) for module in modules]
        self._reshards: list[FSDPMeshInfo | None] = []

    @property
    def module(self) -> Any:
        """The first of them, which speaks for all."""
        return self.modules[0]

    @property
    def groups(self) -> list[FSDPParamGroup]:
        """The groups of parameters that torch gathers together."""
        # The list came with a newer torch; older ones have a single group, or none
        state = self.module._get_fsdp_state()
        return (
            list(state._fsdp_param_groups)
            if hasattr(state, "_fsdp_param_groups")
            else [g for g in (state._fsdp_param_group,) if g is not None]
        )

    def keep_whole(self) -> None:
        """Gather the parameters, and let no forward pass part them again."""
        self._reshards = [group.post_forward_mesh_info for group in self.groups]
        for group in self.groups:
            group.post_forward_mesh_info = None
        self.module.unshard()

    def part_again(self) -> None:
        """Undo `keep_whole`."""
        for group, reshards in zip(self.groups, self._reshards, strict=True):
            group.post_forward_mesh_info = reshards
        self.module.reshard()

    def undo(self) -> None:
        """Bring the modules back to their state before, but for their parameters."""
        from torch.distributed._composable_state import _module_state_mapping

        state = self.module._get_fsdp_state()
        handles = [state._pre_forward_hook_handle, state._post_forward_hook_handle]
        for group in self.groups:
            handles += group._module_to_pre_save_state_dict_hook_handle.values()
            handles += group._module_to_pre_load_state_dict_hook_handle.values()
        for handle in handles:
            handle.remove()
        for module, own, attributes in zip(
            self.modules, self._classes, self._attributes, strict=True
        ):
            module.__class__ = own
            # What the user's code has set meanwhile stays
            for name in set(vars(module)) - attributes:
                if not isinstance(name, str) or "fsdp" in name or "composable" in name:
                    del vars(module)[name]
            _module_state_mapping.pop(module, None)


def tied_together(modules: list[nn.Module]) -> list[list[nn.Module]]:
    """Put modules that share parameters, directly or through others, into one list each.

    To shard one without the others would untie the parameters they share.
    """
    groups: list[list[nn.Module]] = []
    for module in modules:
        own = {id(parameter) for parameter in module.parameters()}
        tied = [
            group
            for group in groups
            if any(id(parameter) in own for one in group for parameter in one.parameters())
        ]
        groups = [group for group in groups if group not in tied]
        groups.append([*(one for group in tied for one in group), module])
    return groups


def is_part(value: object) -> bool:
    """Tell whether a tensor is spread over the ranks."""
    return hasattr(value, "device_mesh") and isinstance(value, Tensor)


def part_like(parameter: Any, value: object) -> object:
    """Return this rank's part of a whole tensor that is shaped like a sharded parameter.

    Anything else is returned as it is.
    """
    if (
        not is_part(parameter)
        or not isinstance(value, Tensor)
        or is_part(value)
        or value.shape != parameter.shape
    ):
        return value
    from torch.distributed.tensor import DTensor

    local = value
    mesh = parameter.device_mesh
    for number, placement in enumerate(parameter.placements):
        if placement.is_shard():
            parts = torch.chunk(local, mesh.size(number), placement.dim)
            own = mesh.get_local_rank(number)
            # torch.chunk makes fewer parts than there are ranks if there are fewer rows
            local = parts[own] if own < len(parts) else local.narrow(placement.dim, 0, 0)
    local = local.to(parameter.to_local().device, copy=True)
    return DTensor.from_local(
        local,
        mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def policy_of(given: object) -> Callable[..., bool] | None:
    """Return the function that says whether a module is a unit, None if nothing was given.

    Raises:
        ConfigError: it is neither classes, nor import paths of classes, nor a policy.
    """
    if given is None:
        return None
    if callable(given) and not isinstance(given, type):
        policy: Callable[..., bool] = given
        return policy
    classes = []
    for one in given if isinstance(given, (list, tuple, set, frozenset)) else [given]:
        found = one
        if isinstance(one, str):
            place, _, name = one.rpartition(".")
            try:
                found = getattr(importlib.import_module(place), name)
            except (ImportError, AttributeError, ValueError) as error:
                raise ConfigError(
                    f"auto_wrap_policy={one!r}: {error or 'no such class'}. Give the import path of"
                    " a class of modules."
                ) from error
        if not (isinstance(found, type) and issubclass(found, nn.Module)):
            raise ConfigError(
                f"auto_wrap_policy={given!r}: {one!r} is no class of modules. Give classes, their"
                " import paths, or a policy."
            )
        classes.append(found)
    return OfClasses(tuple(classes))


@dataclass(frozen=True)
class OfClasses:
    """The policy that modules of some classes are units."""

    classes: tuple[type[nn.Module], ...]

    def __call__(self, module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        """Tell whether a module is a unit; the arguments are those of torch's policies."""
        return isinstance(module, self.classes)

    def check(self, module: nn.Module) -> None:
        """Refuse a module in which there is none of the classes: all of it would be one unit.

        Raises:
            ConfigError: that is so; it names the classes that there are.
        """
        inner = [one for one in module.modules() if one is not module]
        if any(isinstance(one, self.classes) for one in inner):
            return
        there = sorted({type(one).__name__ for one in inner if next(one.children(), None)})
        there = there or sorted({type(one).__name__ for one in inner})
        raise ConfigError(
            f"auto_wrap_policy names {', '.join(one.__name__ for one in self.classes)}, of which"
            f" {type(module).__name__} has no module, so that its parameters would be gathered all"
            f" at once. It has {', '.join(there)}. Name the block that repeats, or leave"
            " auto_wrap_policy out."
        )


def callable_children(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the children with parameters, in place of a list or dict of modules those in it."""
    for child in module.children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from callable_children(child)
        elif next(child.parameters(), None) is not None:
            yield child
