"""What user code reads off `trainer` about the ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from raylit.engine.run import Run
    from raylit.parallel import World


class Ranks:
    """How many ranks there are, and which this one is."""

    min_workers: int
    num_workers: int
    num_nodes: int
    _run: Run | None

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers changes with what the cluster has, from `min_workers` to `num_workers`."""
        return self.min_workers < self.num_workers

    @property
    def workers_wanted(self) -> str:
        """How many workers were asked for, in words."""
        return (
            f"{self.min_workers} to {self.num_workers}"
            if self.is_elastic
            else str(self.num_workers)
        )

    @property
    def world_size(self) -> int:
        """Number of ranks; before a job those that were asked for, at most."""
        return self._run.world.size if self._run is not None else max(1, self.num_workers)

    @property
    def num_devices(self) -> int:
        """Number of ranks on each node."""
        return max(
            1,
            self.world_size
            // (self._run.world.num_nodes if self._run is not None else self.num_nodes),
        )

    @property
    def device_ids(self) -> list[int]:
        """Numbers of the devices on each node."""
        return list(range(self.num_devices))

    @property
    def distributed_sampler_kwargs(self) -> dict[str, int] | None:
        """Arguments for a DistributedSampler of one's own; None on one rank."""
        return (
            {"num_replicas": self.world_size, "rank": self.global_rank}
            if self.world_size > 1
            else None
        )

    @property
    def world(self) -> World:
        """This rank's place among the others."""
        assert self._run is not None, "no job was run yet"
        return self._run.world

    @property
    def global_rank(self) -> int:
        """Rank among all processes."""
        return self._run.world.rank if self._run is not None else 0

    @property
    def local_rank(self) -> int:
        """Rank among the processes of this node."""
        return self._run.world.local_rank if self._run is not None else 0

    @property
    def node_rank(self) -> int:
        """Number of this node."""
        return self._run.world.node_rank if self._run is not None else 0

    @property
    def is_global_zero(self) -> bool:
        """Whether this is rank 0."""
        return self.global_rank == 0

    def all_gather(self, data: Any, sync_grads: bool = False) -> Any:
        """Stack the tensors of all ranks; see `LightningModule.all_gather`."""
        from torch.utils._pytree import tree_map

        world = self.world
        tensors = tree_map(_as_tensor, data)
        return (
            tensors
            if world.size == 1
            else tree_map(lambda value: world.all_gather(value, sync_grads), tensors)
        )


def _as_tensor(value: Any) -> Any:
    """Return a number or an array as a tensor, of the type that Lightning gives it."""
    dtype = {bool: torch.uint8, int: torch.int32}.get(type(value))
    return (
        torch.as_tensor(value, dtype=dtype)
        if isinstance(value, (bool, int, float, np.ndarray, np.generic))
        else value
    )
