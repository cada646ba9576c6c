"""Lightning's place for strategies; `FSDP` and `DDP` are short for them."""

from raylit.parallel import DDPStrategy, FSDPStrategy, Strategy

DDP = DDPStrategy
FSDP = FSDPStrategy

__all__ = ["DDPStrategy", "FSDPStrategy", "Strategy"]
