"""Loaders: combined, sharded over ranks, counted.

The only place for pyarrow, and `ray_dataset` for ray.data.
"""

from raylit.data.collate import collate_missing
from raylit.data.combined import CombinedLoader
from raylit.data.identity import identify
from raylit.data.iterator_steps import Handover, takes_iterator
from raylit.data.loaders import prepare
from raylit.data.ray_dataset import RayDataLoader
from raylit.data.sampling.indices import noting_indices, seen_indices
from raylit.data.sampling.plan import set_epoch
from raylit.data.sampling.sampler import ShardedSampler, shard

__all__ = [
    "CombinedLoader",
    "Handover",
    "RayDataLoader",
    "ShardedSampler",
    "collate_missing",
    "identify",
    "noting_indices",
    "prepare",
    "seen_indices",
    "set_epoch",
    "shard",
    "takes_iterator",
]
