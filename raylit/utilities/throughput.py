"""Place of Throughput and `measure_flops`.

In Lightning it is `lightning.fabric.utilities.throughput`.
"""

from raylit.runtime.throughput import Throughput, get_available_flops, measure_flops

__all__ = ["Throughput", "get_available_flops", "measure_flops"]
