"""Lightning's place for nested collections."""

from __future__ import annotations

from torch.utils._pytree import SUPPORTED_NODES, TreeSpec, tree_flatten, tree_unflatten

__all__ = ["SUPPORTED_NODES", "TreeSpec", "tree_flatten", "tree_unflatten"]


def _tree_flatten(pytree: object) -> tuple[list[object], TreeSpec]:
    return tree_flatten(pytree)
