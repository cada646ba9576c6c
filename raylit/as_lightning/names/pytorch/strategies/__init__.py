"""Lightning's names beside those of `raylit.strategies`."""

from raylit import strategies
from raylit.as_lightning.beside import names_of
from raylit.as_lightning.refused import FSDP_INSTEAD, NO_DEEPSPEED, NO_XLA, refused
from raylit.parallel.strategy import ParallelStrategy, SingleDeviceStrategy

ModelParallelStrategy = refused(
    "ModelParallelStrategy", f"{FSDP_INSTEAD} It cuts no layer into pieces (tensor parallelism)."
)
DeepSpeedStrategy = refused("DeepSpeedStrategy", NO_DEEPSPEED)
SingleDeviceXLAStrategy = refused("SingleDeviceXLAStrategy", NO_XLA)
XLAStrategy = refused("XLAStrategy", NO_XLA)

__all__ = [
    "DeepSpeedStrategy",
    "ModelParallelStrategy",
    "ParallelStrategy",
    "SingleDeviceStrategy",
    "SingleDeviceXLAStrategy",
    "XLAStrategy",
]

__getattr__ = names_of(__name__, strategies)
