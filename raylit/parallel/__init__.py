"""Ranks and how they keep a model in step.

The only place for `torch.distributed` and its wrappers.
"""

from raylit.parallel.batch_norm import sync_batch_norm, unsync_batch_norm
from raylit.parallel.by_name import find_strategy, no_sync
from raylit.parallel.ddp import DDPStrategy
from raylit.parallel.fsdp import FSDPStrategy
from raylit.parallel.precision import Precision
from raylit.parallel.strategy import ParallelStrategy, SingleDeviceStrategy, Strategy
from raylit.parallel.world import World, choose_device, is_lost_peer

__all__ = [
    "DDPStrategy",
    "FSDPStrategy",
    "ParallelStrategy",
    "Precision",
    "SingleDeviceStrategy",
    "Strategy",
    "World",
    "choose_device",
    "find_strategy",
    "is_lost_peer",
    "no_sync",
    "sync_batch_norm",
    "unsync_batch_norm",
]
