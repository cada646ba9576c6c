"""Lightning's names beside those of `raylit.fabric.utilities`."""

from raylit.as_lightning.beside import names_of
from raylit.fabric import utilities
from raylit.utilities import AttributeDict, LightningEnum, measure_flops
from raylit.utilities.throughput import Throughput

__all__ = ["AttributeDict", "LightningEnum", "Throughput", "measure_flops"]

__getattr__ = names_of(__name__, utilities)
