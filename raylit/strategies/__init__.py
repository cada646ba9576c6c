"""Lightning's place for strategies; `FSDP` and `DDP` are short for them."""

from raylit.parallel import (
    DDPStrategy,
    FSDPStrategy,
    ParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from raylit.runtime.lazy import attribute_loader

DDP = DDPStrategy
FSDP = FSDPStrategy

__all__ = ["DDPStrategy", "FSDPStrategy", "ParallelStrategy", "SingleDeviceStrategy", "Strategy"]

__getattr__ = attribute_loader(__name__)  # Lightning's paths, which no module here imports
