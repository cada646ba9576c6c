"""Lightning's place for strategies."""

from raylit.parallel import DDPStrategy, FSDPStrategy, Strategy

DDP = DDPStrategy
FSDP = FSDPStrategy

__all__ = ["DDP", "FSDP", "DDPStrategy", "FSDPStrategy", "Strategy"]
