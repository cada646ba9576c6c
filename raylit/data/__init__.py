"""Loaders: combined, sharded over ranks, counted. The only place for pyarrow."""

from raylit.data.combined import CombinedLoader
from raylit.data.loaders import prepare
from raylit.data.sampler import ShardedSampler, set_epoch, shard

__all__ = ["CombinedLoader", "ShardedSampler", "prepare", "set_epoch", "shard"]
