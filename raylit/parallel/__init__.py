"""Ranks and how they keep a model in step. The only place for `torch.distributed` and its wrappers."""

from raylit.parallel.ddp import DDPStrategy, find_strategy, no_sync
from raylit.parallel.precision import Precision
from raylit.parallel.world import World, choose_device, is_lost_peer

__all__ = ["DDPStrategy", "Precision", "World", "choose_device", "find_strategy", "is_lost_peer", "no_sync"]
