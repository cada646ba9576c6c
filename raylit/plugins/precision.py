"""Lightning's path to the number formats of `raylit.parallel.plugins`."""

from raylit.parallel.plugins import (
    DoublePrecision,
    FSDPPrecision,
    HalfPrecision,
    MixedPrecision,
)
from raylit.parallel.plugins import PrecisionPlugin as Precision

__all__ = ["DoublePrecision", "FSDPPrecision", "HalfPrecision", "MixedPrecision", "Precision"]
